package saga_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/internal/crash"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

func TestStartRefusesWhatCannotRun(t *testing.T) {
	t.Parallel()
	pool := database(t)
	good := newTrip("anna")
	for _, tc := range []struct {
		sentence string
		change   func(*saga.NewInstance)
	}{
		{"no id", func(n *saga.NewInstance) { n.ID = uuid.Nil }},
		{"no lane", func(n *saga.NewInstance) { n.Lane = "" }},
		{"no definition", func(n *saga.NewInstance) { n.Definition = "" }},
		{"no version", func(n *saga.NewInstance) { n.Version = 0 }},
		{"data that is not JSON", func(n *saga.NewInstance) { n.Data = make(chan int) }},
	} {
		in := good
		tc.change(&in)
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, in) })
		if err == nil {
			t.Errorf("%s: Start = nil, want an error", tc.sentence)
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_instances`); n != 0 {
		t.Errorf("%d instances started, want none", n)
	}
}

func TestStartIsIdempotentAndAtomicWithItsTransaction(t *testing.T) {
	t.Parallel()
	pool := database(t)
	a, b := newTrip("anna"), newTrip("anna")
	rolledBack := errors.New("rolled back")
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if err := saga.Start(t.Context(), tx, a); err != nil {
			return err
		}
		return rolledBack
	})
	if !errors.Is(err, rolledBack) {
		t.Fatal(err)
	}
	start(t, pool, a, a)
	start(t, pool, b, a)
	start(t, pool)
	if n := count(t, pool, `SELECT pending FROM saga_lanes WHERE lane = 'anna'`); n != 2 {
		t.Errorf("%d pending in the lane, want 2", n)
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_instances`); n != 2 {
		t.Errorf("%d instances, want 2", n)
	}
}

// The lane's row orders the starts, whatever order the transactions began in.
func TestALaneFollowsTheOrderOfCommits(t *testing.T) {
	t.Parallel()
	pool := database(t)
	first, second := newTrip("anna"), newTrip("anna")
	inTx(t, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `INSERT INTO saga_lanes (lane) VALUES ('anna')`)
		return err
	})
	slow, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := saga.Start(t.Context(), slow, first); err != nil {
		t.Fatal(err)
	}
	const drawn = `SELECT last_value FROM saga_instances_n_seq`
	before := count(t, pool, drawn)
	started := make(chan error, 1)
	go func() {
		started <- pgx.BeginFunc(context.WithoutCancel(t.Context()), pool, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, second) })
	}()
	until(t, "the second start waits for the first", func() bool {
		return count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`) == 1
	})
	if n := count(t, pool, drawn); n != before {
		t.Errorf("the second start drew its place (%d after %d) before it held the lane", n, before)
	}
	if err := slow.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	list, err := saga.List(t.Context(), pool, saga.Filter{Lane: "anna"})
	if err != nil || len(list) != 2 || list[0].ID != first.ID || list[1].ID != second.ID {
		t.Errorf("lane = %v, %v, want the first committed first", list, err)
	}
}

// A lane can become due long before its transaction commits: below the engine's floor.
func TestASlowStartIsFoundBelowTheFloor(t *testing.T) {
	t.Parallel()
	pool := database(t)
	in := newTrip("anna")
	engine(t, pool, quick(), trip(newProvider()))
	warm := newTrip("bert")
	start(t, pool, warm)
	untilState(t, pool, warm.ID, saga.Completed)
	inTx(t, pool, func(tx pgx.Tx) error {
		if err := saga.Start(t.Context(), tx, in); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `UPDATE saga_lanes SET run_at = now() - interval '1 hour' WHERE lane = 'anna'`)
		return err
	})
	untilState(t, pool, in.ID, saga.Completed)
}

func TestAnInstanceThatKillsItsEngineEachTimeIsStuckAndHoldsNobodyElse(t *testing.T) {
	t.Parallel()
	pool := database(t)
	poison, other := newTrip("anna"), newTrip("bert")
	start(t, pool, poison, other)
	var die func()
	do := func(_ context.Context, _ pgx.Tx, in *saga.Instance) error {
		if in.ID == poison.ID {
			die()
		}
		return nil
	}
	opts := quick()
	opts.MaxCrashes = 5
	deaths := 0
	for h := load(t, pool, poison.ID); h.Instance.State != saga.StuckState; h = load(t, pool, poison.ID) {
		if deaths++; deaths > 20 {
			t.Fatalf("after %d deaths the instance is %s", deaths, h.Instance.State)
		}
		killed := false
		die = func() { killed = true }
		ctx, cancel := context.WithCancel(crash.With(t.Context(), func(kind crash.Kind, _ string) bool {
			return kind == crash.BeforeCommit && killed
		}))
		e, err := saga.NewEngine(pool, []*saga.Definition{saga.Define("trip", 1, saga.Local("do", do))}, opts)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		until(t, "the engine died or the instance is stuck", func() bool {
			select {
			case err = <-ended:
				return true
			default:
				return load(t, pool, poison.ID).Instance.State == saga.StuckState
			}
		})
		cancel()
		if err == nil {
			err = <-ended
		}
		if err != nil && !errors.Is(err, crash.ErrKilled) {
			t.Fatal(err)
		}
		sagatest.Expire(t.Context(), t, pool)
	}
	if got := load(t, pool, other.ID).Instance.State; got != saga.Completed {
		t.Errorf("the other instance is %s, want completed: it must not die with its neighbour for ever", got)
	}
}

func TestAnEngineWaitsForAPostgresThatIsAway(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var all []saga.NewInstance
	for i := range 30 {
		all = append(all, newTrip(string(rune('a'+i))))
	}
	start(t, pool, all...)
	p := newProvider()
	opts := quick()
	opts.BatchSize = 4
	engine(t, pool, opts, trip(p))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	kills := 0
	until(t, "all have completed", func() bool {
		if kills++; kills%5 == 0 && kills < 300 {
			// F20: every connection but this one, again and again.
			_, err = conn.Exec(t.Context(), `
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			if err != nil {
				t.Fatal(err)
			}
		}
		var completed int
		err := conn.QueryRow(t.Context(), `SELECT count(*) FROM saga_instances WHERE state = 'completed'`).Scan(&completed)
		if err != nil {
			t.Fatal(err)
		}
		return completed == len(all)
	})
	if p.charges != len(all) {
		t.Errorf("%d charges for %d instances", p.charges, len(all))
	}
}
