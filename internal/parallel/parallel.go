// Package parallel says how many tests of a binary run at once. Tests that wait for servers most of the time want more of them
// than the machine has cores.
package parallel

import (
	"flag"
	"fmt"
	"strconv"
)

// Tests has n parallel tests of this binary run at once, unless the command line says how many. TestMain calls it before
// [testing.M.Run].
func Tests(n int) error {
	if !flag.Parsed() {
		flag.Parse()
	}
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if chosen {
		return nil
	}
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		return fmt.Errorf("run %d tests at once: %w", n, err)
	}
	return nil
}
