package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/test/system"
	"github.com/orderflow-dev/orderflow/test/verify"
)

// binary is the program under test. TestMain builds it once; the testing package gives tests no other way to it.
var binary *system.Binary

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if !parallel() {
		// Tests wait for the system most of the time: more of them fit on a machine than it has cores.
		if err := flag.Set("test.parallel", "16"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	var err error
	if binary, err = system.Build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := binary.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// parallel reports whether the command line says how many tests run at once.
func parallel() (chosen bool) {
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	return chosen
}

// finish waits until the system is at rest and fails the test for everything that must not be.
func finish(t testing.TB, d *system.Dev) {
	t.Helper()
	target := verify.Target{DB: d.DB, Kafka: system.Kafka(t, d.Ready.Kafka), Outside: d.Client}
	if err := verify.AtRest(t.Context(), target, decided); err != nil {
		t.Fatalf("not at rest: %v", err)
	}
	violations, err := verify.Check(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Error(v)
	}
}
