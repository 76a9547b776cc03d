package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/test/system"
	"github.com/orderflow-dev/orderflow/test/verify"
)

// binary is the program under test. TestMain builds it once; the testing package gives tests no other way to it.
var binary *system.Binary

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
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

// finish waits until the system is at rest and fails the test for everything that must not be.
func finish(t testing.TB, d *system.Dev) {
	t.Helper()
	target := verify.Target{DB: d.DB, Kafka: system.Kafka(t, d.Ready.Kafka), Outside: d.Client}
	if err := verify.AtRest(t.Context(), target, time.Minute); err != nil {
		t.Fatalf("not at rest after a minute: %v", err)
	}
	violations, err := verify.Check(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Error(v)
	}
}
