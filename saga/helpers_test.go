package saga_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
)

const deadline = time.Minute

func newTrip(lane string) saga.NewInstance {
	return saga.NewInstance{ID: uuid.Must(uuid.NewV7()), Lane: lane, Definition: "trip", Version: 1, Data: map[string]int{"seats": 1}}
}

func start(t testing.TB, pool *pgxpool.Pool, starts ...saga.NewInstance) {
	t.Helper()
	inTx(t, pool, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, starts...) })
}

func inTx(t testing.TB, pool *pgxpool.Pool, f func(tx pgx.Tx) error) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), pool, f); err != nil {
		t.Fatal(err)
	}
}

// engine runs an engine until the test ends or stop is called.
func engine(t testing.TB, pool *pgxpool.Pool, opts saga.EngineOptions, defs ...*saga.Definition) (stop func()) {
	t.Helper()
	e, err := saga.NewEngine(pool, defs, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	var stopped bool
	t.Cleanup(func() { dump(t, pool) })
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// dump says what is live, for a test that waits in vain.
func dump(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if !t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	defer cancel()
	for _, sql := range []string{
		`SELECT format('%s %s %s attempt %s %s', lane, state, step_name, attempt, error) FROM saga_instances WHERE finished_at IS NULL ORDER BY n LIMIT 20`,
		`SELECT format('%s pending %s in %s token %s rev %s', lane, pending, run_at - now(), token, rev) FROM saga_lanes WHERE pending > 0 LIMIT 20`,
		`SELECT format('%s %s %s %s: %s', pid, state, wait_event, now() - xact_start, left(query, 100)) FROM pg_stat_activity WHERE datname = current_database()`,
	} {
		rows, _ := pool.Query(ctx, sql)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		t.Logf("%v:\n%s", err, strings.Join(lines, "\n"))
	}
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited %v for: %s", deadline, what)
		}
		<-tick.C
	}
}

// passDeadline ends an instance's time.
func passDeadline(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `UPDATE saga_instances SET deadline_at = clock_timestamp() WHERE id = $1 AND finished_at IS NULL`, id)
	if err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) *saga.History {
	t.Helper()
	h, err := saga.Load(t.Context(), pool, id)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func untilState(t testing.TB, pool *pgxpool.Pool, id uuid.UUID, want saga.State) *saga.History {
	t.Helper()
	var h *saga.History
	end := time.Now().Add(deadline)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if h = load(t, pool, id); h.Instance.State == want {
			return h
		}
		if time.Now().After(end) {
			t.Fatalf("saga is %s, want %s: %+v, journal %s", h.Instance.State, want, h.Instance, journal(h))
		}
		<-tick.C
	}
}

// journal writes a history in one line.
func journal(h *saga.History) string {
	s := ""
	for _, e := range h.Journal {
		verb := "do"
		if e.Undo {
			verb = "undo"
		}
		s += fmt.Sprintf("%s %s %s; ", verb, e.Step, e.State)
	}
	return s
}

func count(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}
