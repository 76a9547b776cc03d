package system

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/parallel"
)

// Main builds the program under test into binary, runs the package's tests and fails when a goroutine is left over. It does
// not return.
//
// The tests wait for the system most of the time, so 16 of them run at once, however few cores the machine has.
func Main(m *testing.M, binary **Binary) { os.Exit(run(m, binary)) }

func run(m *testing.M, binary **Binary) (code int) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	if err := parallel.Tests(16); err != nil {
		fail(err)
		return code
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
