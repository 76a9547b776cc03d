package saga_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

func TestAnErrorOfTheDatabaseIsNotAnAttempt(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ sentence, sql string }{
		{"a deadlock", `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$`},
		{"a serialization failure", `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$`},
		{"a connection that is cut", `SELECT pg_terminate_backend(pg_backend_pid())`},
		{"a server that is full", `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53300'; END $$`},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			var calls atomic.Int32
			var attempts atomic.Int32
			do := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
				attempts.Store(int32(in.Attempt))
				if calls.Add(1) <= 12 {
					_, err := tx.Exec(ctx, tc.sql)
					return fmt.Errorf("step: %w", err)
				}
				return nil
			}
			in := newTrip("anna")
			start(t, pool, in)
			opts := quick()
			opts.MaxAttempts = 3
			engine(t, pool, opts, saga.Define("trip", 1, saga.Local("do", do)))
			untilState(t, pool, in.ID, saga.Completed)
			if attempts.Load() != 0 {
				t.Errorf("%d attempts counted, want none", attempts.Load())
			}
		})
	}
}

func TestARowThatSomebodyKeepsLockedHoldsUpItsOwnInstanceOnly(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ sentence, setting string }{
		{"until the lock timeout", `SET LOCAL lock_timeout = '100ms'`},
		{"until the statement timeout", `SET LOCAL statement_timeout = '100ms'`},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			var attempts atomic.Int32
			do := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
				attempts.Add(int32(in.Attempt))
				if _, err := tx.Exec(ctx, tc.setting); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `UPDATE seats SET free = free - 1 WHERE train = $1`, in.Lane)
				return err
			}
			var started []saga.NewInstance
			for i := range 10 {
				started = append(started, newTrip(fmt.Sprintf("user-%d", i)))
			}
			if _, err := pool.Exec(t.Context(), `INSERT INTO seats SELECT 'user-' || n, 5 FROM generate_series(0, 9) n`); err != nil {
				t.Fatal(err)
			}
			person, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = person.Rollback(context.WithoutCancel(t.Context())) }()
			if _, err := person.Exec(t.Context(), `SELECT FROM seats WHERE train = 'user-3' FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			start(t, pool, started...)
			engine(t, pool, quick(), saga.Define("trip", 1, saga.Local("do", do)))
			until(t, "the nine others", func() bool {
				return count(t, pool, `SELECT count(*) FROM saga_instances WHERE state = 'completed'`) == 9
			})
			if err := person.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			untilState(t, pool, started[3].ID, saga.Completed)
			if attempts.Load() != 0 {
				t.Errorf("%d attempts counted, want none", attempts.Load())
			}
		})
	}
}

func TestAFailureTakesBackItsOwnWritesOnly(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var started []saga.NewInstance
	for i := range 8 {
		started = append(started, newTrip(fmt.Sprintf("user-%d", i)))
	}
	do := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		if err := confirm(ctx, tx, in); err != nil {
			return err
		}
		switch in.Lane {
		case "user-1":
			return saga.Rejected("no")
		case "user-2":
			return errors.New("a bug")
		case "user-3":
			panic("a bug")
		case "user-4":
			return saga.Stuck(errors.New("two amounts"))
		case "user-5":
			_, err := tx.Exec(ctx, `INSERT INTO seats VALUES ('north', 1)`)
			return err
		case "user-6":
			_, _ = tx.Exec(ctx, `no such statement`) // the step goes on as if nothing were
		}
		return nil
	}
	start(t, pool, started...)
	opts := quick()
	opts.MaxAttempts = 3
	engine(t, pool, opts, saga.Define("trip", 1, saga.Local("do", do)))
	for i, want := range []saga.State{saga.Completed, saga.Compensated, saga.StuckState, saga.StuckState, saga.StuckState, saga.StuckState, saga.StuckState, saga.Completed} {
		h := untilState(t, pool, started[i].ID, want)
		wrote := count(t, pool, `SELECT count(*) FROM trips WHERE saga_id = $1`, started[i].ID)
		if (wrote == 1) != (want == saga.Completed) {
			t.Errorf("%s is %s and wrote %d rows; error %q", started[i].Lane, want, wrote, h.Instance.Error)
		}
		if want == saga.StuckState && h.Instance.Error == "" {
			t.Errorf("%s is stuck and does not say why", started[i].Lane)
		}
	}
}

func TestLanesThatCouldNotBeLoadedAreGivenBack(t *testing.T) {
	t.Parallel()
	pool := database(t)
	crashes := make(chan string, 3)
	do := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		var n int
		if err := tx.QueryRow(ctx, `SELECT crashes FROM saga_instances WHERE id = $1`, in.ID).Scan(&n); err != nil {
			return err
		}
		crashes <- fmt.Sprint(in.Lane, " ", n)
		return nil
	}
	opts := quick()
	opts.Lease = time.Hour // who does not give back keeps them
	engine(t, pool, opts, saga.Define("trip", 1, saga.Local("do", do)))
	first, fresh, orphan := newTrip("first"), newTrip("fresh"), newTrip("orphan")
	start(t, pool, first)
	untilState(t, pool, first.ID, saga.Completed) // the engine runs
	<-crashes
	inTx(t, pool, func(tx pgx.Tx) error {
		if err := saga.Start(t.Context(), tx, fresh, orphan); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `
			UPDATE saga_lanes SET token = gen_random_uuid() WHERE lane = 'orphan'; -- an engine died at it
			ALTER TABLE saga_instances RENAME TO away`)
		return err
	})
	until(t, "both have been claimed again", func() bool {
		return count(t, pool, `SELECT count(*) FROM saga_lanes WHERE rev > 1 AND pending > 0`) == 2
	})
	inTx(t, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `ALTER TABLE away RENAME TO saga_instances`)
		return err
	})
	untilState(t, pool, fresh.ID, saga.Completed)
	untilState(t, pool, orphan.ID, saga.Completed)
	got := []string{<-crashes, <-crashes}
	slices.Sort(got)
	if want := []string{"fresh 0", "orphan 1"}; !slices.Equal(got, want) {
		t.Errorf("lanes and crashes counted at them: %v, want %v", got, want)
	}
}

func TestABatchRunsOnWithoutItsBadInstance(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var calls atomic.Int32
	do := func(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
		calls.Add(1)
		for _, i := range in {
			if i.Lane == "user-3" {
				return nil, errors.New("a bug")
			}
			if err := confirm(ctx, tx, i); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	var started []saga.NewInstance
	for i := range 10 {
		started = append(started, newTrip(fmt.Sprintf("user-%d", i)))
	}
	start(t, pool, started...)
	opts := quick()
	opts.MaxAttempts = 3
	engine(t, pool, opts, saga.Define("trip", 1, saga.LocalBatch("do", do)))
	for i, in := range started {
		want := saga.Completed
		if i == 3 {
			want = saga.StuckState
		}
		untilState(t, pool, in.ID, want)
	}
	// Once together, then one by one, and two more tries of the bad one.
	if n := calls.Load(); n > 20 {
		t.Errorf("the step ran %d times for 10 instances, want about 13", n)
	}
}

func TestACompensationThatKeepsFailingIsStuckAndNeverFailed(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var broken atomic.Bool
	broken.Store(true)
	p := newProvider()
	undo := func(ctx context.Context, in *saga.Instance, call *saga.Call) error {
		if broken.Load() {
			return saga.Rejected("disputed")
		}
		return p.refund(ctx, in, call)
	}
	in := newTrip("anna")
	start(t, pool, in)
	opts := quick()
	opts.MaxUndoAttempts = 4
	engine(t, pool, opts, refusedTrip(p, undo))
	h := untilState(t, pool, in.ID, saga.StuckState)
	if h.Instance.Attempt != 4 || h.Instance.Error != "disputed" || h.Instance.Failure.Reason != "no" {
		t.Errorf("stuck instance = %+v, want 4 attempts, the error and the failure", h.Instance)
	}
	if n := count(t, pool, `SELECT count(*) FROM trips`); n != 0 || p.balance() != 1 {
		t.Errorf("told %d times, %d paid: a stuck saga must not end", n, p.balance())
	}
	broken.Store(false)
	inTx(t, pool, func(tx pgx.Tx) error {
		return saga.Retry(t.Context(), tx, in.ID, saga.Operator{By: "ops", Reason: "the dispute is over", Rev: h.Instance.Rev})
	})
	untilState(t, pool, in.ID, saga.Compensated)
	if p.balance() != 0 || p.refunds != 1 {
		t.Errorf("%d refunds and a balance of %d, want one and 0", p.refunds, p.balance())
	}
}

// A provider that is away, for longer than many tries take, makes nothing stuck: what it does not answer says nothing of the
// saga. A refusal does, but not for the tries before it that had no answer.
func TestACompensationWithoutAnAnswerIsTriedOn(t *testing.T) {
	t.Parallel()
	pool := database(t)
	const limit = 3
	var tries atomic.Int32
	p := newProvider()
	undo := func(ctx context.Context, in *saga.Instance, call *saga.Call) error {
		switch n := tries.Add(1); {
		case n <= 4*limit:
			return errTimeout
		case n <= 8*limit:
			return saga.NotSent(errors.New("circuit open"))
		case n < 9*limit: // one refusal less than the limit
			return saga.Rejected("not now")
		}
		return p.refund(ctx, in, call)
	}
	in := newTrip("anna")
	start(t, pool, in)
	opts := quick()
	opts.MaxUndoAttempts = limit
	engine(t, pool, opts, refusedTrip(p, undo))
	untilState(t, pool, in.ID, saga.Compensated)
	if p.balance() != 0 || p.refunds != 1 {
		t.Errorf("%d refunds and a balance of %d, want one and 0", p.refunds, p.balance())
	}
}

// Past the time in which the other side is known to remember its key, a compensation that was never answered needs a person,
// who may give it that time anew.
func TestACompensationWithoutAnAnswerIsStuckPastItsKeyWindow(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var tries atomic.Int32
	p := newProvider()
	undo := func(context.Context, *saga.Instance, *saga.Call) error {
		tries.Add(1)
		return errTimeout
	}
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), refusedTrip(p, undo))
	var h *saga.History
	until(t, "the window is over and the saga stuck", func() bool {
		// Again and again: the engine writes back what it has read.
		_, err := pool.Exec(t.Context(), `UPDATE saga_journal SET key_since = key_since - interval '1 hour' WHERE undo AND saga_id = $1`, in.ID)
		if err != nil {
			t.Fatal(err)
		}
		h = load(t, pool, in.ID)
		return h.Instance.State == saga.StuckState
	})
	if h.Instance.Error != errTimeout.Error() {
		t.Errorf("error = %q, want %q", h.Instance.Error, errTimeout)
	}
	intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "it is back"}, saga.Retry)
	before := tries.Load()
	until(t, "more tries", func() bool { return tries.Load() > before+3 })
	if h = load(t, pool, in.ID); h.Instance.State != saga.Compensating {
		t.Errorf("after a retry the saga is %s, want it tried on", h.Instance.State)
	}
}

// refusedTrip is charged and then refused, so that the charge has to be undone.
func refusedTrip(p *provider, undo saga.UndoFunc) *saga.Definition {
	refuse := func(context.Context, pgx.Tx, *saga.Instance) error { return saga.Rejected("no") }
	return saga.Define("trip", 1,
		saga.Remote("charge", p.charge).Query(p.find).Undo(undo).Timeout(time.Second),
		saga.Local("refuse", refuse).Pivot()).OnFailed(failed)
}

func TestAfterThePivotASagaOnlyGoesForward(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var tries atomic.Int32
	p := newProvider()
	last := func(context.Context, pgx.Tx, *saga.Instance) error {
		if tries.Add(1) < 4 {
			return errors.New("not now")
		}
		return nil
	}
	pivot := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		if err := confirm(ctx, tx, in); err != nil {
			return err
		}
		return saga.RequestCancel(ctx, tx, in.ID) // comes too late by a hair
	}
	def := saga.Define("trip", 1,
		saga.Remote("charge", p.charge).Query(p.find).Undo(p.refund).Timeout(time.Second),
		saga.Local("confirm", pivot).Pivot(), saga.Local("last", last)).Deadline(time.Minute)
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), def)
	h := untilState(t, pool, in.ID, saga.Completed)
	if !h.Instance.CancelRequested || p.balance() != 1 {
		t.Errorf("cancel requested %v, balance %d, want a cancel that came too late and the money kept", h.Instance.CancelRequested, p.balance())
	}
}

func TestARejectionAfterThePivotIsStuck(t *testing.T) {
	t.Parallel()
	pool := database(t)
	refuse := func(context.Context, pgx.Tx, *saga.Instance) error { return saga.Rejected("no") }
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), saga.Define("trip", 1, saga.Local("confirm", confirm).Pivot(), saga.Local("refuse", refuse)))
	h := untilState(t, pool, in.ID, saga.StuckState)
	if !strings.Contains(h.Instance.Error, "after the pivot") {
		t.Errorf("error = %q, want it to name the pivot", h.Instance.Error)
	}
}

func TestAnInstanceWithoutCodeIsStuckUntilAnEngineHasIt(t *testing.T) {
	t.Parallel()
	pool := database(t)
	in := newTrip("anna")
	in.Version = 2
	start(t, pool, in)
	v1 := saga.Define("trip", 1, saga.Local("confirm", confirm))
	v2 := saga.Define("trip", 2, saga.Local("confirm", confirm))
	stop := engine(t, pool, quick(), v1)
	h := untilState(t, pool, in.ID, saga.StuckState)
	if !strings.Contains(h.Instance.Error, "no code") {
		t.Errorf("error = %q, want it to say that there is no code", h.Instance.Error)
	}
	stop()
	if _, err := pool.Exec(t.Context(), `UPDATE saga_lanes SET run_at = now()`); err != nil {
		t.Fatal(err)
	}
	engine(t, pool, quick(), v1, v2)
	untilState(t, pool, in.ID, saga.Completed)
}

func TestRunRefusesToDropAVersionThatIsStillLive(t *testing.T) {
	t.Parallel()
	pool := database(t)
	start(t, pool, newTrip("anna"))
	e, err := saga.NewEngine(pool, []*saga.Definition{saga.Define("trip", 2, saga.Local("confirm", confirm))}, quick())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline) // one that does not refuse runs on
	defer cancel()
	if err := e.Run(ctx); err == nil || !strings.Contains(err.Error(), `"trip" version 1`) {
		t.Errorf("Run = %v, want it to name the version", err)
	}
}
