package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/inbox"
)

// swallow breaks the transaction of messages that say "swallow", until it is told to stop, and keeps quiet about it.
func swallow(stop *atomic.Bool) inbox.Handler {
	return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
		if what(m) == "swallow" && !stop.Load() {
			_, _ = tx.Exec(ctx, `SELECT 1/0`)
		}
		return nil
	}
}

// A handler that swallows an error of its transaction says that all is well, and Postgres rolls everything back. Where no
// statement comes behind it, only the commit can tell.
func TestASwallowedErrorIsFoundAtTheCommitOfACleanBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var stop atomic.Bool
	opts, log := w.patient()
	opts.InlineAttempts = 1
	w.start(swallow(&stop), opts)
	w.produce(record("u2", 1, "swallow"))
	w.wait("its fate", func() bool { return w.lag() == 0 })
	w.produce(record("u1", 1, ""), record("u3", 1, ""))
	w.wait("the others", func() bool { return w.count(`SELECT count(*) FROM effects WHERE key <> 'u2'`) == 2 })
	w.wantOnlyTheSwallowerHeld(log)
	stop.Store(true)
	w.due("u2")
	w.wait("the mended one", func() bool { return len(w.effects("u2")) == 1 })
}

// Behind a failure batches run with savepoints, and there it is the savepoint that cannot be released.
func TestASwallowedErrorIsFoundAtTheEndOfItsSavepoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var stop atomic.Bool
	opts, log := w.patient()
	opts.InlineAttempts = 1
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "discard" {
			return inbox.Discard("superseded") // a failure of the batch that leaves nothing behind
		}
		return swallow(&stop)(ctx, tx, m)
	}, opts)
	w.produce(record("first", 1, "discard"))
	w.wait("a batch with savepoints", func() bool {
		return w.count(`SELECT count(*) FROM processed_messages WHERE state = 'discarded'`) == 1
	})
	w.produce(record("u1", 1, ""), record("u2", 1, "swallow"), record("u3", 1, ""))
	w.wantOnlyTheSwallowerHeld(log)
}

func (w *world) wantOnlyTheSwallowerHeld(log *lines) {
	w.Helper()
	w.wait("a fate for all", func() bool { return w.lag() == 0 })
	w.wantEffects("u1", 1)
	w.wantEffects("u2")
	w.wantEffects("u3", 1)
	if p := w.parked(inbox.Filter{}); len(p) != 1 || p[0].Key != "u2" || p[0].State != inbox.StateHeld {
		w.Errorf("parked: %s, want u2 held and nothing else", w.describeParked())
	}
	if n := log.containing(circuitOpened); n != 0 {
		w.Errorf("the consumer was paused %d times for a message's own fault", n)
	}
}

func TestASwallowedErrorIsFoundByTheDrainer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var stop atomic.Bool
	opts, log := w.patient()
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Attempt == 1 {
			return inbox.RetryAfter(time.Hour, errors.New("park it"))
		}
		return swallow(&stop)(ctx, tx, m)
	}, opts)
	w.produce(record("u1", 1, "swallow"))
	w.wait("held", func() bool { return len(w.parked(inbox.Filter{})) == 1 })
	w.due("u1")
	w.wait("a second try", func() bool {
		parked := w.parked(inbox.Filter{})
		return len(parked) == 1 && parked[0].Attempts == 2 || len(parked) == 0 || log.containing(circuitOpened) > 0
	})
	w.wantEffects("u1")
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times for a message's own fault", n)
	}
	stop.Store(true)
	w.due("u1")
	w.wait("the mended one", func() bool { return len(w.effects("u1")) == 1 })
	w.wait("no holds", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
}

// F27: what Postgres says while it cannot serve anyone, on a connection that lives: the transaction could still park the
// message. Whatever the handler makes of it, the message is not to blame.
func TestNobodyIsBlamedForWhatPostgresCannotDoForAnyone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var away atomic.Pointer[error]
	c := w.consumer(onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := away.Load(); err != nil {
			return inbox.Permanent(fmt.Errorf("insert order: %w", *err)) // what a careless handler does
		}
		if what(m) == "park" && m.Attempt == 1 {
			return inbox.RetryAfter(time.Hour, errors.New("park it"))
		}
		return apply(ctx, tx, m)
	}), w.options())
	w.run(c)
	errs := map[string]error{"no server": &pgconn.ConnectError{Config: &pgconn.Config{}}}
	for name, code := range map[string]string{
		"disk full": "53100", "too many connections": "53300", "starting up": "57P03", "a standby": "25006", "an I/O error": "58030",
	} {
		errs[name] = fmt.Errorf("exec: %w", &pgconn.PgError{Code: code, Message: name})
	}
	for name, err := range errs {
		live, held := "live "+name, "held "+name
		w.produce(record(held, 1, "park"))
		w.wait(held, func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1 })
		for key, meet := range map[string]func(){
			held: func() { w.due(held) },
			live: func() { w.produce(record(live, 1, "")) },
		} {
			away.Store(&err)
			meet()
			w.wait("a pause for "+name, func() bool { return c.Ready() != nil || w.count(`SELECT count(*) FROM outbox`) > 0 })
			w.wantNobodyDead()
			if w.Failed() {
				return
			}
			away.Store(nil)
			w.wait(key, func() bool { return c.Ready() == nil && len(w.effects(key)) == 1 })
		}
	}
}
