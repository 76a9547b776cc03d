package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/orderflow-dev/orderflow/inbox"
)

// crowd is a world in which poison stays held until it is cured.
type crowd struct {
	*world
	cured  atomic.Bool
	opts   inbox.Options
	log    lines
	reader *sdk.ManualReader
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	w := &crowd{world: newWorld(t), reader: sdk.NewManualReader()}
	w.opts = w.options()
	w.opts.Workers = 1 // what several park at once may exceed the limits
	w.opts.Log = slog.New(slog.NewTextHandler(&w.log, nil))
	w.opts.Meter = sdk.NewMeterProvider(sdk.WithReader(w.reader)).Meter("inbox")
	return w
}

func (w *crowd) handle(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if what(m) == "poison" && !w.cured.Load() {
		return inbox.RetryAfter(time.Hour, errors.New("not yet"))
	}
	return apply(ctx, tx, m)
}

// cure makes every held message due and good.
func (w *crowd) cure() {
	w.cured.Store(true)
	if _, err := w.db.Pool.Exec(w.Context(), `UPDATE inbox_holds SET next_at = now()`); err != nil {
		w.Fatal(err)
	}
}

func (w *crowd) refused() (n int64) {
	w.Helper()
	var all metricdata.ResourceMetrics
	if err := w.reader.Collect(w.Context(), &all); err != nil {
		w.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "inbox.holds.refused" {
				for _, point := range sum.DataPoints {
					n += point.Value
				}
			}
		}
	}
	return n
}

func (w *crowd) isFull(c *inbox.Consumer) bool {
	err := c.Ready()
	return err != nil && says([]string{err.Error()}, "no room for the messages of ")
}

func TestAKeyWithManyHeldMessagesWaitsLoudlyAndGoesOnByItself(t *testing.T) {
	t.Parallel()
	w := newCrowd(t)
	w.opts.MaxHeldPerKey = 3
	c := w.consumer(onlyPlaced(w.handle), w.opts)
	w.run(c)
	w.produce(record("u1", 1, "poison"))
	for seq := 2; seq <= 20; seq++ {
		w.produce(record("u1", seq, ""), record("other", seq-1, ""))
	}
	w.wait("the other key", func() bool { return len(w.effects("other")) == 19 })
	w.wait("not ready", func() bool { return w.isFull(c) })
	w.wait("the words", func() bool {
		return says(c.Why(), "(orders partition ", " offset 3) finds no room among the held ones (3 of its key), and is tried again at ")
	})
	w.wait("several tries", func() bool { return w.refused() >= 3 })
	if n := len(w.parked(inbox.Filter{})); n != 3 {
		t.Errorf("%d parked, want 3", n)
	}
	if n := w.log.containing("level=ERROR msg=\"no room for another held message"); n != 1 {
		t.Errorf("%d errors in the log, want 1", n)
	}
	if lag := w.lag(); lag < 17 {
		t.Errorf("lag = %d, want the 17 without room, and what came behind them, not committed", lag)
	}
	w.cure()
	w.wait("all effects", func() bool { return len(w.effects("u1")) == 20 && w.lag() == 0 })
	w.wantEffects("u1", seqs(20)...)
	w.wantEffects("other", seqs(19)...)
	w.wait("ready again", func() bool { return c.Ready() == nil })
	if n := w.log.containing("there is room for held messages again"); n != 1 {
		t.Errorf("the log says %d times that there is room again, want once", n)
	}
}

func TestAGroupWithManyHeldMessagesParksNoMoreAndLosesNone(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]inbox.Policy{"keys held": inbox.HoldKey, "keys released": inbox.ReleaseKey} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newCrowd(t)
			w.opts.MaxHeld, w.opts.BatchSize = 5, 4
			routes := onlyPlaced(w.handle)
			routes[0].Policy = policy
			c := w.consumer(routes, w.opts)
			stop := w.run(c)
			for key := range 9 {
				w.produce(record(fmt.Sprintf("u%d", key), 1, "poison"), record(fmt.Sprintf("u%d", key), 2, ""), record(fmt.Sprintf("v%d", key), 1, ""))
			}
			w.wait("the keys without poison", func() bool { return w.count(`SELECT count(*) FROM effects WHERE key LIKE 'v%'`) == 9 })
			w.wait("not ready", func() bool { return w.isFull(c) })
			stop()
			c = w.consumer(routes, w.opts) // what found no room is delivered again
			w.run(c)
			w.wait("not ready either", func() bool { return w.isFull(c) && w.refused() > 10 })
			if n := len(w.parked(inbox.Filter{})); n != 5 {
				t.Errorf("%d parked, want 5", n)
			}
			w.cure()
			w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) >= 27 && w.lag() == 0 })
			for key := range 9 {
				w.wantEffects(fmt.Sprintf("u%d", key), 1, 2)
				w.wantEffects(fmt.Sprintf("v%d", key), 1)
			}
			w.wait("ready again", func() bool { return c.Ready() == nil })
		})
	}
}

// A message that is dead where keys are released lets the rest of its key pass, with or without room.
func TestADeadMessageWithoutRoomIsKeptAndWhatPassedItIsAppliedOnce(t *testing.T) {
	t.Parallel()
	w := newCrowd(t)
	w.opts.MaxHeld = 2
	routes := onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" {
			return inbox.Permanent(errors.New("never"))
		}
		return apply(ctx, tx, m)
	})
	routes[0].Policy = inbox.ReleaseKey
	c := w.consumer(routes, w.opts)
	w.produce(record("u1", 1, "poison"), record("u1", 2, "poison"), record("u1", 3, "poison"), record("u1", 4, ""), record("u1", 5, ""))
	w.run(c)
	w.wait("what passes", func() bool { return len(w.effects("u1")) == 2 && w.isFull(c) })
	dead := w.parked(inbox.Filter{State: inbox.StateDead})
	if len(dead) != 2 {
		t.Fatalf("%d dead, want 2", len(dead))
	}
	if err := inbox.DiscardParked(t.Context(), w.db.Pool, dead[0], "make room", "bob"); err != nil {
		t.Fatal(err)
	}
	w.wait("the third one has room", func() bool {
		return len(w.parked(inbox.Filter{State: inbox.StateDead})) == 2 && w.lag() == 0 && c.Ready() == nil
	})
	w.wantEffects("u1", 4, 5)
	if n := w.count(`SELECT count(*) FROM outbox`); n != 3 {
		t.Errorf("%d copies of dead letters, want 3", n)
	}
}
