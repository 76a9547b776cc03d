package system

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Main builds the program under test into binary, runs the package's tests and fails when a goroutine is left over. It does
// not return.
//
// The tests wait for the system most of the time, so more of them run at once than the machine has cores, unless the command
// line says how many.
func Main(m *testing.M, binary **Binary) { os.Exit(run(m, binary)) }

func run(m *testing.M, binary **Binary) (code int) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	flag.Parse()
	if !chosen("test.parallel") {
		fail(flag.Set("test.parallel", "16"))
	}
	built, err := Build(context.Background())
	if err != nil {
		fail(err)
		return code
	}
	defer func() { fail(built.Remove()) }()
	*binary = built
	if code = m.Run(); code == 0 {
		fail(goleak.Find())
	}
	return code
}

// chosen reports whether the command line has the flag.
func chosen(name string) (found bool) {
	flag.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}
