package main

import (
	"strings"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/services/api"
)

func TestMigrateSampleMakesADatabaseReadyForOrders(t *testing.T) {
	t.Parallel()
	url := pgtest.NewEmpty(t).URL
	if got := orderflow(t.Context(), "migrate", "--sample", "--database-url", url); got.code != exitUsage || !strings.Contains(got.stderr, "--dev") {
		t.Fatalf("migrate --sample = exit %d, %s; want %d and --dev", got.code, got.stderr, exitUsage)
	}
	for range 2 { // the second changes nothing
		if got := orderflow(t.Context(), "migrate", "--dev", "--sample", "--database-url", url); got.code != 0 {
			t.Fatalf("migrate --dev --sample = exit %d, %s; want 0", got.code, got.stderr)
		}
		got := orderflow(t.Context(), "keys", "list", "--database-url", url)
		if got.code != 0 || strings.Count(got.stdout, "orderflow dev") != 1 || strings.Contains(got.stdout, api.DevKey) {
			t.Errorf("keys list = exit %d, %s%s; want the development key's name, once", got.code, got.stdout, got.stderr)
		}
	}
}
