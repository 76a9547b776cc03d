package inbox_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// parkFirst makes a handler that parks what says "park" at its first try and does the rest with next.
func parkFirst(next inbox.Handler) inbox.Handler {
	return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "park" && m.Attempt == 1 {
			return inbox.RetryAfter(time.Hour, errors.New("park it"))
		}
		return next(ctx, tx, m)
	}
}

// due makes held keys due, in the order given.
func (w *world) due(keys ...string) {
	w.Helper()
	_, err := w.db.Pool.Exec(w.Context(), `
		UPDATE inbox_holds h SET next_at = now() - interval '1 minute' + k.n * interval '1 millisecond'
		FROM unnest($1::text[]) WITH ORDINALITY AS k (key, n) WHERE h.key = k.key`, keys)
	if err != nil {
		w.Fatal(err)
	}
}

func TestASlowHeldKeyKeepsNoOtherWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Key == "slow" {
			close(entered)
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return apply(ctx, tx, m)
	}), w.options())
	w.produce(record("slow", 1, "park"), record("early", 1, "park"), record("late", 1, "park"))
	w.wait("three held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 3 })
	w.due("slow", "early")
	<-entered
	w.due("late")
	w.wait("the other keys", func() bool { return len(w.effects("early")) == 1 && len(w.effects("late")) == 1 })
}

func TestALongHeldLineLetsOthersHaveTheirTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const long = 300
	var ofLong, before atomic.Int32
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Key == "short" {
			before.Store(ofLong.Load())
		} else {
			ofLong.Add(1)
		}
		return apply(ctx, tx, m)
	}), w.options())
	records := []*kgo.Record{record("long1", 1, "park"), record("long2", 1, "park"), record("short", 1, "park")}
	for i := range long - 1 {
		records = append(records, record("long1", i+2, ""), record("long2", i+2, ""))
	}
	w.produce(records...)
	w.wait("all parked", func() bool { return w.count(`SELECT count(*) FROM parked_messages`) == 2*long+1 })
	w.due("long1", "long2", "short")
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 2*long+1 })
	w.wantEffects("long1", seqs(long)...)
	w.wantEffects("long2", seqs(long)...)
	if n := before.Load(); n >= long {
		t.Errorf("%d messages of two lines of %d came before the short one, want about 100 of each", n, long)
	}
}

func TestTriesOfAHeadThatLeftAreNotTheNextOnes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		policy  inbox.Policy
		verdict error
	}{
		{"discarded", inbox.HoldKey, inbox.Discard("superseded")},
		{"dead and released", inbox.ReleaseKey, inbox.Permanent(errors.New("no"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			opts := w.options()
			opts.RetryMax = time.Hour
			opts.MaxTries = 1
			w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, Policy: tt.policy, Handle: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				switch what(m) {
				case "first":
					if m.Attempt <= 2 {
						return inbox.RetryAfter(time.Hour, errors.New("not now"))
					}
					return tt.verdict
				case "second":
					return errors.New("never works")
				}
				return apply(ctx, tx, m)
			}}}, opts)
			w.produce(record("u1", 1, "first"), record("u1", 2, "second"))
			w.wait("both parked", func() bool { return len(w.parked(inbox.Filter{})) == 2 })
			w.due("u1")
			w.wait("a try that is not counted", func() bool { return w.parked(inbox.Filter{})[0].Attempts == 2 })
			others := make([]*kgo.Record, 30)
			for i := range others {
				others[i] = record("v", i, "")
			}
			w.produce(others...)
			w.wait("evidence that others succeed", func() bool { return len(w.effects("v")) == len(others) })
			if _, err := w.db.Pool.Exec(t.Context(), `UPDATE inbox_holds SET tries = 12`); err != nil {
				t.Fatal(err)
			}
			w.due("u1")
			var second inbox.Parked
			w.wait("the first try of the second", func() bool {
				all := w.parked(inbox.Filter{Key: "u1"})
				second = all[len(all)-1]
				return second.Attempts > 0
			})
			if second.State != inbox.StateHeld || time.Until(second.NextTryAt) > time.Minute {
				t.Errorf("after its first try the second is %s until %v, want it held for less than a second", second.State, second.NextTryAt)
			}
		})
	}
}

// The lease of a held key bounds its handler. Without that the second drainer takes the key over, and loses it to the first.
func TestAHeldMessageThatTakesLongerThanTheLeaseHasFailed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		wait func(context.Context, pgx.Tx) error
	}{
		{"in the handler", func(ctx context.Context, _ pgx.Tx) error {
			<-ctx.Done()
			return ctx.Err()
		}},
		{"in Postgres", func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SELECT pg_sleep(3600)`)
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			opts, log := w.patient()
			opts.Lease = time.Second
			w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if m.Attempt <= 3 {
					return tt.wait(ctx, tx)
				}
				return apply(ctx, tx, m)
			}), opts)
			w.produce(record("u1", 1, "park"))
			for attempts := 1; attempts <= 3; attempts++ {
				var parked []inbox.Parked
				w.wait("a failed try", func() bool {
					parked = w.parked(inbox.Filter{})
					return len(parked) == 1 && parked[0].Attempts == attempts
				})
				if slow := parked[0].Class == inbox.ClassSlowHandler; slow != (attempts > 1) {
					t.Errorf("try %d failed as %s: %s", attempts, parked[0].Class, parked[0].Error)
				}
				w.due("u1")
			}
			w.wait("its effect", func() bool { return len(w.effects("u1")) == 1 })
			if n := log.containing(circuitOpened); n != 0 {
				t.Errorf("the consumer was paused %d times, want never", n)
			}
		})
	}
}

func TestALeaseThatIsLostIsLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts, log := w.patient()
	entered, release := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() {
		close(entered)
		<-release
	})
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		first()
		return apply(ctx, tx, m)
	}), opts)
	w.produce(record("u1", 1, "park"))
	w.wait("held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1 })
	w.due("u1")
	<-entered
	w.edit(w.shown(w.parked(inbox.Filter{})[0].ID), `{"seq":2}`) // takes the lease
	close(release)
	w.wait("the effect of the edited one", func() bool { return len(w.effects("u1")) == 1 })
	w.wantEffects("u1", 2)
	if n := log.containing("lease of a held key lost"); n != 1 {
		t.Errorf("the log says %d times that the lease is lost, want once", n)
	}
}
