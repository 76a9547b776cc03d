package main

import (
	"strings"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

func TestRetryMakesHeldKeysDueAndNoOthers(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	held, dead := park(t, db, "warehouse", "held", []byte("{}"), `[]`), park(t, db, "warehouse", "dead", []byte("{}"), `[]`)
	for _, sql := range []string{
		`UPDATE warehouse.inbox_holds SET next_at = now() + interval '30 minutes'`,
		`UPDATE warehouse.inbox_holds SET state = 'held' WHERE key = 'held'`,
		`UPDATE warehouse.parked_messages SET state = 'held' WHERE key = 'held'`,
	} {
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr string
		due    string
	}{
		{"without --yes", []string{"--all"}, 0, "1 held messages would be tried now; --yes does it", ""},
		{"of a dead one", []string{dead, "--yes"}, exitConflict, dead + " is dead, not held", ""},
		{"of nothing in particular", []string{"--yes"}, exitUsage, "--all", ""},
		{"by its name", []string{held, "--yes"}, 0, "1 held keys are due now", "held"},
	} {
		got := orderflow(t.Context(), append(append([]string{"dlq", "retry"}, tc.args...), "--database-url", db.URL)...)
		if got.code != tc.code || !strings.Contains(got.stderr, tc.stderr) {
			t.Errorf("retry %s = exit %d, %s; want %d, %s", tc.name, got.code, got.stderr, tc.code, tc.stderr)
		}
		var due string
		if err := db.Pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(key, ' '), '') FROM warehouse.inbox_holds WHERE next_at <= now()`).Scan(&due); err != nil {
			t.Fatal(err)
		}
		if due != tc.due {
			t.Errorf("after a retry %s %q are due, want %q", tc.name, due, tc.due)
		}
	}
}
