package main

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/saga"
)

func TestAllStuckSagasAreRetried(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for range 3 {
		halt(t, db, "stuck", "")
	}
	other, doubtful := halt(t, db, "stuck", ""), halt(t, db, "in_doubt", "pi_7")
	if _, err := db.Pool.Exec(t.Context(), `
		UPDATE orders.saga_instances
		SET step_name = CASE WHEN id = $1 THEN 'reserve stock' ELSE step_name END,
			error = CASE WHEN id = $1 THEN error ELSE 'payment intent pi_' || id || ': 502' END`, other); err != nil {
		t.Fatal(err)
	}
	retry := func(args ...string) result {
		return orderflow(t.Context(), slices.Concat([]string{"saga", "retry", "--database-url", db.URL, "--reason", "it is back"}, args)...)
	}
	states := func() map[string]int {
		t.Helper()
		rows, _ := db.Pool.Query(t.Context(), `
			SELECT i.state || CASE WHEN i.id = $1 THEN ' other' ELSE '' END || coalesce(', ' || a.action || ' for ' || a.reason, '')
			FROM orders.saga_instances i LEFT JOIN orders.saga_audit a ON a.saga_id = i.id`, other)
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for _, s := range all {
			n[s]++
		}
		return n
	}
	got := retry("--state", "stuck")
	if got.code != 0 || !strings.Contains(got.stdout, "3      charge payment  payment intent … 502\n1      reserve stock   no answer\n") || !strings.Contains(got.stderr, "4 sagas would be retried") {
		t.Errorf("the plan: exit %d, %s%s; want 3 of one step and 1 of the other", got.code, got.stdout, got.stderr)
	}
	if got, want := states(), map[string]int{"stuck": 3, "stuck other": 1, "in_doubt": 1}; !maps.Equal(got, want) {
		t.Errorf("after the plan: %v, want %v", got, want)
	}
	got = retry("--state", "stuck", "--step", "charge payment", "--yes")
	if got.code != 0 || !strings.Contains(got.stderr, "3 sagas are retried") || !strings.Contains(got.stderr, "0 had moved") {
		t.Errorf("with --yes: exit %d, %s%s; want 3 retried", got.code, got.stdout, got.stderr)
	}
	if got, want := states(), map[string]int{"running, retry for it is back": 3, "stuck other": 1, "in_doubt": 1}; !maps.Equal(got, want) {
		t.Errorf("afterwards: %v, want %v", got, want)
	}

	listed, err := saga.List(t.Context(), schemaPool(t, db), saga.Filter{State: saga.StuckState})
	if err != nil || len(listed) != 1 {
		t.Fatalf("List = %+v, %v; want the other", listed, err)
	}
	if got := orderflow(t.Context(), "saga", "skip", other, "--rev", "0", "--reason", "by hand", "--yes", "--database-url", db.URL); got.code != 0 {
		t.Fatalf("skip: exit %d, %s", got.code, got.stderr)
	}
	if _, err := db.Pool.Exec(t.Context(), `UPDATE orders.saga_instances SET state = 'stuck', stuck_for = 'error' WHERE id = $1`, other); err != nil {
		t.Fatal(err)
	}
	op := saga.Operator{By: "ops", Reason: "it is back"}
	retried, moved, err := retryListed(t.Context(), schemaPool(t, db), listed, op, newProgress(io.Discard))
	if retried != 0 || moved != 1 || err != nil {
		t.Errorf("retry of one that has moved since it was listed = %d retried, %d moved, %v; want 0 and 1", retried, moved, err)
	}
	for _, args := range [][]string{
		{}, {"--step", "charge payment"}, {"--state", "running"}, {"--state", "stuck", "--step", ""}, {"--state", "stuck", "--rev", "0"}, {doubtful, "--state", "in_doubt"},
	} {
		if got := retry(append(args, "--yes")...); got.code != exitUsage {
			t.Errorf("saga retry %q = exit %d, %s; want %d", args, got.code, got.stderr, exitUsage)
		}
	}
}

// schemaPool is what the commands open.
func schemaPool(t *testing.T, db *pgtest.DB) *pgxpool.Pool {
	t.Helper()
	pool, err := openSchema(t.Context(), db.URL, "orders")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
