package e2e

import (
	"strings"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/test/system"
	"github.com/orderflow-dev/orderflow/test/verify"
)

// binary is the program under test. TestMain builds it once; the testing package gives tests no other way to it.
var binary *system.Binary

func TestMain(m *testing.M) { system.Main(m, &binary) }

// onKafka returns the arguments that have orderflow dev use the test's Apache Kafka, none when it is to bring its own broker.
func onKafka(t testing.TB) []string {
	t.Helper()
	if broker := kafkatest.Apache(t); broker != nil {
		return []string{"--kafka", strings.Join(broker.Addrs, ",")}
	}
	return nil
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
	if out := binary.Run(t, "payments", "reconcile", "--until", "0s", "--database-url", d.Ready.Postgres, "--payment-url", d.Ready.Sandbox); out.Code != 0 {
		t.Errorf("payments reconcile: exit code %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
}
