package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

func TestEngineCarriesASagaThroughItsSteps(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), trip(p))
	h := untilState(t, pool, in.ID, saga.Completed)
	want := "do check succeeded; do hold seat succeeded; do charge succeeded; do confirm succeeded; "
	if got := journal(h); got != want {
		t.Errorf("journal = %s, want %s", got, want)
	}
	if p.balance() != 1 || p.charges != 1 {
		t.Errorf("provider charged %d times, refunded %d, want one charge", p.charges, p.refunds)
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_lanes WHERE pending <> 0 OR token IS NOT NULL OR run_at IS NOT NULL`); n != 0 {
		t.Errorf("%d lanes are not at rest", n)
	}
}

func TestEngineSettlesWhatACallDid(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence string
		script   []behaviour
		want     saga.State
		charges  int
		refunds  int
	}{
		{"a decline compensates", []behaviour{no}, saga.Compensated, 0, 0},
		{"a charge whose answer is lost is found, and not sent again", []behaviour{lostAnswer, no}, saga.Completed, 1, 0},
		{"a call that did nothing is sent again under its key", []behaviour{timeout, timeout, yes}, saga.Completed, 1, 0},
		{"a call that never left is sent again without being asked about", []behaviour{notSent, notSent, yes}, saga.Completed, 1, 0},
		{"a panic leaves the outcome unknown", []behaviour{panics, yes}, saga.Completed, 1, 0},
		{"after timeouts, a decline still compensates", []behaviour{timeout, notSent, no}, saga.Compensated, 0, 0},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := newProvider(tc.script...)
			in := newTrip("anna")
			start(t, pool, in)
			engine(t, pool, quick(), trip(p))
			h := untilState(t, pool, in.ID, tc.want)
			if p.charges != tc.charges || p.refunds != tc.refunds || len(p.intents) != 1 {
				t.Errorf("%d charges, %d refunds, %d intents, want %d, %d and 1; journal %s",
					p.charges, p.refunds, len(p.intents), tc.charges, tc.refunds, journal(h))
			}
			held := count(t, pool, `SELECT count(*) FROM holds`)
			if want := map[saga.State]int{saga.Completed: 1, saga.Compensated: 0}[tc.want]; held != want {
				t.Errorf("%d seats held, want %d", held, want)
			}
		})
	}
}

// What is sent when the other side may have forgotten the key could be a second charge. So it is not sent, and a person settles it.
func TestNothingIsSentUnderAKeyThatMayBeForgotten(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence string
		again    error // of each call but the first, which ends without an answer
		answer   saga.Answer
		rests    string // between two engines
		happened bool
		want     saga.State
	}{
		{"nobody knows what the calls did", errTimeout, saga.NotYet(), "do charge", true, saga.Completed},
		{"the first did nothing, and no other has left", saga.NotSent(errors.New("refused")), saga.NeverExisted(), "do charge absent", false, saga.Compensated},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := newProvider()
			var calls atomic.Int32
			charge := func(context.Context, *saga.Instance, *saga.Call) (any, error) {
				if calls.Add(1) == 1 {
					return nil, errTimeout
				}
				return nil, tc.again
			}
			find := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) { return tc.answer, nil }
			def := saga.Define("trip", 1,
				saga.LocalBatch("hold seat", hold).UndoBatch(release),
				saga.Remote("charge", charge).Query(find).Undo(p.refund).Record(paid).Timeout(time.Second),
				saga.Local("confirm", confirm).Pivot()).OnFailed(failed)
			in := newTrip("anna")
			start(t, pool, in)
			var sent int32
			// Two halves of the window: a call in the second one does not begin it anew.
			for _, hours := range []int{22, 2} {
				stop := engine(t, pool, quick(), def)
				until(t, "another call", func() bool { return calls.Load() > sent })
				stop()
				sent = calls.Load()
				_, err := pool.Exec(t.Context(), `UPDATE saga_journal SET key_since = key_since - make_interval(hours => $1) WHERE name = 'charge'`, hours)
				if err != nil {
					t.Fatal(err)
				}
			}
			if got := journal(load(t, pool, in.ID)); !strings.Contains(got, tc.rests) {
				t.Errorf("journal = %s, want %s", got, tc.rests)
			}
			engine(t, pool, quick(), def)
			until(t, "the saga is in doubt, or a call is sent", func() bool {
				return calls.Load() > sent || load(t, pool, in.ID).Instance.State == saga.InDoubt
			})
			if h := load(t, pool, in.ID); calls.Load() > sent {
				t.Fatalf("a call was sent after the key window; journal %s", journal(h))
			}
			intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "asked the provider"}, func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
				return saga.Resolve(ctx, tx, id, saga.Resolution{Happened: tc.happened, Result: json.RawMessage(`{"intent":"pi_7"}`)}, op)
			})
			h := untilState(t, pool, in.ID, tc.want)
			if n := calls.Load() - sent; n != 0 {
				t.Errorf("%d calls after the key window, want none; journal %s", n, journal(h))
			}
			if n := count(t, pool, `SELECT count(*) FROM trips WHERE paid = 'pi_7'`); (n == 1) != tc.happened {
				t.Errorf("%d paid trips", n)
			}
		})
	}
}
