package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
)

// darkTrip is a trip whose provider never says what it did.
func darkTrip(p *provider) *saga.Definition {
	never := func(context.Context, *saga.Instance, *saga.Call) (any, error) { return nil, errTimeout }
	silent := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) { return saga.NotYet(), nil }
	return saga.Define("trip", 1,
		saga.LocalBatch("hold seat", hold).UndoBatch(release),
		saga.Remote("charge", never).Query(silent).Undo(p.refund).Record(paid).Timeout(time.Millisecond).KeyWindow(20*time.Millisecond),
		saga.Local("confirm", confirm).Pivot(),
	).OnFailed(failed)
}

func TestOperatorsSettleWhatIsInDoubt(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence string
		act      func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error
		want     saga.State
		action   string
		journal  string
	}{
		{
			"it happened: the saga goes on, and what the person found is recorded",
			func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
				return saga.Resolve(ctx, tx, id, saga.Resolution{Happened: true, Result: json.RawMessage(`{"intent":"pi_7"}`)}, op)
			},
			saga.Completed, "resolve", "do hold seat succeeded; do charge succeeded; do confirm succeeded; ",
		},
		{
			"it did not happen: the saga is compensated",
			func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
				return saga.Resolve(ctx, tx, id, saga.Resolution{}, op)
			},
			saga.Compensated, "resolve", "do hold seat succeeded; do charge rejected; undo hold seat succeeded; ",
		},
		{
			"compensate, whatever it was", saga.Compensate,
			saga.Compensated, "compensate", "do hold seat succeeded; do charge unknown; undo charge succeeded; undo hold seat succeeded; ",
		},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := newProvider()
			in := newTrip("anna")
			start(t, pool, in)
			engine(t, pool, quick(), darkTrip(p))
			untilState(t, pool, in.ID, saga.InDoubt)
			op := saga.Operator{By: "ops", Reason: "asked the provider"}
			intervene(t, pool, in.ID, op, tc.act)
			h := untilState(t, pool, in.ID, tc.want)
			if got := journal(h); got != tc.journal {
				t.Errorf("journal = %s, want %s", got, tc.journal)
			}
			if len(h.Audit) != 1 || h.Audit[0].Action != tc.action || h.Audit[0].By != op.By || h.Audit[0].Reason != op.Reason || h.Audit[0].Was != saga.InDoubt {
				t.Errorf("audit = %+v, want one %s by %s of a saga in doubt", h.Audit, tc.action, op.By)
			}
			paid := count(t, pool, `SELECT count(*) FROM trips WHERE paid = 'pi_7' AND state = 'confirmed'`)
			if (paid == 1) != (tc.want == saga.Completed) {
				t.Errorf("%d paid trips in state %s", paid, tc.want)
			}
			if n := count(t, pool, `SELECT free + (SELECT count(*) FROM holds) FROM seats`); n != 1000000 {
				t.Errorf("%d seats in all, want 1000000", n)
			}
		})
	}
}

// A person says that it did not happen while the call is still on its way. The compensation of a step that has saved its progress
// is the barrier that stops it.
func TestAWordThatItDidNotHappenStopsACallThatIsOnItsWay(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider(chargedLater)
	dark := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) {
		return saga.Answer{}, errTimeout
	}
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), saga.Define("trip", 1,
		saga.Remote("charge", p.charge).Query(dark).Undo(p.refund).Timeout(time.Second),
		saga.Local("confirm", confirm).Pivot()).OnFailed(failed))
	until(t, "the charge is on its way", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.late) == 1
	})
	until(t, "its outcome is unknown", func() bool {
		return count(t, pool, `SELECT count(*) FROM saga_journal WHERE state = 'unknown' AND saved IS NOT NULL`) == 1
	})
	intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "not charged"}, func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
		return saga.Resolve(ctx, tx, id, saga.Resolution{}, op)
	})
	h := untilState(t, pool, in.ID, saga.Compensated)
	p.mu.Lock()
	charged := p.carryOut(p.late[0])
	p.mu.Unlock()
	if charged {
		t.Error("the call that was on its way has charged a trip that failed")
	}
	if got, want := journal(h), "do charge unknown; undo charge succeeded; "; got != want {
		t.Errorf("journal = %s, want %s", got, want)
	}
	if f := h.Instance.Failure; f.Kind != saga.FailedOperator || f.Reason != "not charged" {
		t.Errorf("failure = %+v, want the operator's", f)
	}
}

// intervene acts on the revision that it looks at, as often as the engine is faster.
func intervene(t *testing.T, pool *pgxpool.Pool, id uuid.UUID, op saga.Operator, act func(context.Context, pgx.Tx, uuid.UUID, saga.Operator) error) {
	t.Helper()
	until(t, "the intervention met the revision", func() bool {
		op.Rev = load(t, pool, id).Instance.Rev
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return act(t.Context(), tx, id, op) })
		if err != nil && !errors.Is(err, saga.ErrConflict) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func TestOperatorsAreRefusedWhatTheStateForbids(t *testing.T) {
	t.Parallel()
	pool := database(t)
	done, waiting := newTrip("anna"), newTrip("bert")
	start(t, pool, done)
	stop := engine(t, pool, quick(), trip(newProvider()))
	doneRev := untilState(t, pool, done.ID, saga.Completed).Instance.Rev
	stop()
	start(t, pool, waiting)
	resolve := func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
		return saga.Resolve(ctx, tx, id, saga.Resolution{Happened: true}, op)
	}
	full := saga.Operator{By: "ops", Reason: "why not"}
	for _, tc := range []struct {
		sentence string
		act      func(context.Context, pgx.Tx, uuid.UUID, saga.Operator) error
		id       uuid.UUID
		op       saga.Operator
		rev      int64
		want     error // nil: any error
	}{
		{"retry what has ended", saga.Retry, done.ID, full, doneRev, saga.ErrConflict},
		{"compensate what has ended", saga.Compensate, done.ID, full, doneRev, saga.ErrConflict},
		{"resolve what has ended", resolve, done.ID, full, doneRev, saga.ErrConflict},
		{"skip what is not stuck", saga.Skip, waiting.ID, full, 0, saga.ErrConflict},
		{"retry what is not stuck", saga.Retry, waiting.ID, full, 0, saga.ErrConflict},
		{"resolve what has called nobody", resolve, waiting.ID, full, 0, saga.ErrConflict},
		{"another revision", saga.Compensate, waiting.ID, full, 99, saga.ErrConflict},
		{"an unknown saga", saga.Compensate, uuid.New(), full, 0, saga.ErrNotFound},
		{"no reason", saga.Compensate, waiting.ID, saga.Operator{By: "ops"}, 0, nil},
		{"nobody", saga.Compensate, waiting.ID, saga.Operator{Reason: "why not"}, 0, nil},
	} {
		tc.op.Rev = tc.rev
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return tc.act(t.Context(), tx, tc.id, tc.op) })
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.sentence, err, tc.want)
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_audit`); n != 0 {
		t.Errorf("%d audit rows of refused interventions, want none", n)
	}
}

// Two people look at one revision. Whatever the first one wants is done, and the second has to look again.
func TestOfTwoOperatorsAtOneRevisionTheSecondIsRefused(t *testing.T) {
	t.Parallel()
	pool := database(t)
	resolve := func(happened bool) func(context.Context, pgx.Tx, uuid.UUID, saga.Operator) error {
		return func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
			return saga.Resolve(ctx, tx, id, saga.Resolution{Happened: happened}, op)
		}
	}
	commands := []struct {
		name string
		act  func(context.Context, pgx.Tx, uuid.UUID, saga.Operator) error
	}{
		{"retry", saga.Retry}, {"compensate", saga.Compensate}, {"skip", saga.Skip},
		{"resolve --charged", resolve(true)}, {"resolve --not-charged", resolve(false)},
	}
	// Stuck at a call whose outcome is unknown: each command is allowed.
	p := newProvider()
	odd := func(context.Context, *saga.Instance, *saga.Call) (any, error) {
		return nil, saga.Stuck(errors.New("two amounts"))
	}
	looked := make([]saga.Instance, len(commands))
	for i := range looked {
		in := newTrip(fmt.Sprintf("user-%d", i))
		looked[i].ID = in.ID
		start(t, pool, in)
	}
	stop := engine(t, pool, quick(), saga.Define("trip", 1, saga.Remote("charge", odd).Query(p.find).Undo(p.refund).Timeout(time.Second)))
	for i := range looked {
		looked[i] = untilState(t, pool, looked[i].ID, saga.StuckState).Instance
	}
	stop()
	for i, first := range commands {
		op := saga.Operator{By: "the first", Reason: "looked", Rev: looked[i].Rev}
		inTx(t, pool, func(tx pgx.Tx) error { return first.act(t.Context(), tx, looked[i].ID, op) })
		for _, second := range commands {
			op.By = "the second"
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return second.act(t.Context(), tx, looked[i].ID, op) })
			if !errors.Is(err, saga.ErrConflict) || !strings.Contains(err.Error(), "revision") {
				t.Errorf("%s after %s, at one revision: %v, want ErrConflict that names the revision", second.name, first.name, err)
			}
		}
		if audit := load(t, pool, looked[i].ID).Audit; len(audit) != 1 || audit[0].By != "the first" {
			t.Errorf("audit of %s = %+v, want what the first one did", first.name, audit)
		}
	}
}

func TestSkipPassesOverAStuckStep(t *testing.T) {
	t.Parallel()
	pool := database(t)
	broken := func(context.Context, pgx.Tx, *saga.Instance) error { return errors.New("for ever") }
	in := newTrip("anna")
	start(t, pool, in)
	opts := quick()
	opts.MaxAttempts = 2
	engine(t, pool, opts, saga.Define("trip", 1, saga.Local("confirm", confirm).Pivot(), saga.Local("stamp", broken)))
	untilState(t, pool, in.ID, saga.StuckState)
	intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "stamped by hand"}, saga.Skip)
	h := untilState(t, pool, in.ID, saga.Completed)
	if got, want := journal(h), "do confirm succeeded; do stamp skipped; "; got != want {
		t.Errorf("journal = %s, want %s", got, want)
	}
}

// What a person has done by hand is done: no deadline that has passed meanwhile, no cancel and no other person takes the saga back
// behind its pivot, also before an engine has gone on from there.
func TestASagaWhosePivotWasSkippedOnlyGoesForward(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	broken := func(context.Context, pgx.Tx, *saga.Instance) error { return errors.New("for ever") }
	def := saga.Define("trip", 1,
		saga.Remote("charge", p.charge).Query(p.find).Undo(p.refund).Timeout(time.Second),
		saga.Local("confirm", broken).Pivot(), saga.Local("last", nothing)).Deadline(time.Hour)
	in := newTrip("anna")
	start(t, pool, in)
	opts := quick()
	opts.MaxAttempts = 2
	stop := engine(t, pool, opts, def)
	untilState(t, pool, in.ID, saga.StuckState)
	stop()
	op := saga.Operator{By: "ops", Reason: "confirmed by hand"}
	intervene(t, pool, in.ID, op, saga.Skip)
	passDeadline(t, pool, in.ID)
	inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
	op.Rev = load(t, pool, in.ID).Instance.Rev
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return saga.Compensate(t.Context(), tx, in.ID, op) })
	if !errors.Is(err, saga.ErrConflict) {
		t.Errorf("Compensate behind the pivot = %v, want ErrConflict", err)
	}
	engine(t, pool, opts, def)
	var h *saga.History
	until(t, "the saga has ended", func() bool {
		h = load(t, pool, in.ID)
		return h.Instance.State.Final()
	})
	if h.Instance.State != saga.Completed || p.balance() != 1 {
		t.Errorf("the saga is %s (%s), %d paid, want it completed and paid", h.Instance.State, h.Instance.Failure.Kind, p.balance())
	}
}

// A call that was passed over may have been made: what it did is taken back with the rest, also when it turns up later.
func TestASkippedCallIsUndone(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence   string
		made, late bool
		journal    string
	}{
		{"no call was ever sent: there is nothing to undo", false, false, "do charge skipped; do refuse rejected; "},
		{"it was charged", true, false, "do charge skipped; do refuse rejected; undo charge succeeded; "},
		{"it is charged after it was undone", true, true, "do charge succeeded; do refuse rejected; undo charge succeeded; "},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := newProvider(lostAnswer)
			charge := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
				if !tc.made {
					return nil, saga.Stuck(errors.New("two amounts"))
				}
				if !tc.late {
					if _, err := p.charge(ctx, in, call); err == nil {
						return nil, errors.New("an answer that was to be lost")
					}
				}
				return nil, saga.Stuck(errors.New("two amounts"))
			}
			refuse := func(context.Context, pgx.Tx, *saga.Instance) error { return saga.Rejected("no") }
			in := newTrip("anna")
			start(t, pool, in)
			engine(t, pool, quick(), saga.Define("trip", 1,
				saga.Remote("charge", charge).Query(p.find).Undo(p.refund).Timeout(time.Second),
				saga.Local("refuse", refuse).Pivot()))
			untilState(t, pool, in.ID, saga.StuckState)
			if !tc.made {
				// As if the step had stopped before its call.
				if _, err := pool.Exec(t.Context(), `UPDATE saga_journal SET key_since = NULL WHERE saga_id = $1`, in.ID); err != nil {
					t.Fatal(err)
				}
			}
			intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "charged by hand"}, saga.Skip)
			h := untilState(t, pool, in.ID, saga.Compensated)
			if tc.late {
				key := in.ID.String() + ":charge:1"
				p.create(key)
				if err := p.confirm(key); !errors.Is(err, errTimeout) {
					t.Fatal(err)
				}
				for range 2 {
					inTx(t, pool, func(tx pgx.Tx) error {
						return saga.Settle(t.Context(), tx, in.ID, "charge", saga.FoundSucceeded(payment{"pi_1"}))
					})
				}
				until(t, "the late charge is refunded", func() bool { return p.balance() == 0 })
				h = untilState(t, pool, in.ID, saga.Compensated)
			}
			if got := journal(h); got != tc.journal || p.balance() != 0 {
				t.Errorf("journal = %s and a balance of %d, want %s and 0", got, p.balance(), tc.journal)
			}
		})
	}
}

// A webhook may bring the answer early, late or twice.
func TestSettleTakesAnAnswerFromOutside(t *testing.T) {
	t.Parallel()
	settle := func(t *testing.T, pool *pgxpool.Pool, id uuid.UUID, a saga.Answer) {
		t.Helper()
		inTx(t, pool, func(tx pgx.Tx) error { return saga.Settle(t.Context(), tx, id, "charge", a) })
	}
	t.Run("a success ends the doubt", func(t *testing.T) {
		t.Parallel()
		pool := database(t)
		in := newTrip("anna")
		start(t, pool, in)
		engine(t, pool, quick(), darkTrip(newProvider()))
		untilState(t, pool, in.ID, saga.InDoubt)
		settle(t, pool, in.ID, saga.NotYet())
		settle(t, pool, in.ID, saga.FoundSucceeded(payment{"pi_9"}))
		settle(t, pool, in.ID, saga.FoundSucceeded(payment{"pi_9"}))
		untilState(t, pool, in.ID, saga.Completed)
		if n := count(t, pool, `SELECT count(*) FROM trips WHERE paid = 'pi_9'`); n != 1 {
			t.Error("the result of the answer was not recorded once")
		}
	})
	t.Run("a success stays when a rejection comes after it", func(t *testing.T) {
		t.Parallel()
		pool := database(t)
		in := newTrip("anna")
		start(t, pool, in)
		stop := engine(t, pool, quick(), darkTrip(newProvider()))
		untilState(t, pool, in.ID, saga.InDoubt)
		stop()
		settle(t, pool, in.ID, saga.FoundSucceeded(payment{"pi_9"}))
		settle(t, pool, in.ID, saga.FoundRejected("declined"))
		engine(t, pool, quick(), darkTrip(newProvider()))
		untilState(t, pool, in.ID, saga.Completed)
	})
	t.Run("a rejection compensates", func(t *testing.T) {
		t.Parallel()
		pool := database(t)
		in := newTrip("anna")
		start(t, pool, in)
		engine(t, pool, quick(), darkTrip(newProvider()))
		untilState(t, pool, in.ID, saga.InDoubt)
		settle(t, pool, in.ID, saga.FoundRejected("declined"))
		untilState(t, pool, in.ID, saga.Compensated)
	})
	t.Run("a success after the end is undone once, and the end is told once", func(t *testing.T) {
		t.Parallel()
		pool := database(t)
		p := newProvider()
		var ends atomic.Int32
		def := darkTrip(p).OnFailed(func(ctx context.Context, tx pgx.Tx, in *saga.Instance, cause saga.Failure) error {
			ends.Add(1)
			return failed(ctx, tx, in, cause)
		})
		in, next := newTrip("anna"), newTrip("anna")
		start(t, pool, in)
		engine(t, pool, quick(), def)
		untilState(t, pool, in.ID, saga.InDoubt)
		intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "not charged"}, func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
			return saga.Resolve(ctx, tx, id, saga.Resolution{}, op)
		})
		untilState(t, pool, in.ID, saga.Compensated)
		start(t, pool, next)
		untilState(t, pool, next.ID, saga.InDoubt)
		key := in.ID.String() + ":charge:1"
		p.create(key)
		if err := p.confirm(key); err != nil { // it had been charged after all
			t.Fatal(err)
		}
		settle(t, pool, in.ID, saga.FoundSucceeded(payment{"pi_1"}))
		settle(t, pool, in.ID, saga.FoundSucceeded(payment{"pi_1"}))
		until(t, "the late charge is refunded", func() bool { return p.balance() == 0 })
		h := untilState(t, pool, in.ID, saga.Compensated)
		want := "do hold seat succeeded; do charge succeeded; undo charge succeeded; undo hold seat succeeded; "
		if got := journal(h); got != want {
			t.Errorf("journal = %s, want %s", got, want)
		}
		settle(t, pool, in.ID, saga.FoundSucceeded(payment{"pi_1"}))
		if p.refunds != 1 || ends.Load() != 1 {
			t.Errorf("%d refunds, ended %d times, want one of each", p.refunds, ends.Load())
		}
		untilState(t, pool, next.ID, saga.InDoubt) // the lane goes on where it was
		if n := count(t, pool, `SELECT pending FROM saga_lanes`); n != 1 {
			t.Errorf("%d pending in the lane, want the one in doubt", n)
		}
	})
}
