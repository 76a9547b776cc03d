package outbox_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// frozen is a relay's process that is paused, as by SIGSTOP or a machine that is moved, when a statement has been
// answered. From then on nothing of it does anything.
type frozen struct {
	at      string        // in the statement
	paused  chan struct{} // closed when it is paused
	resumed chan struct{}
}

type statement struct{}

// TraceQueryStart is pgx.QueryTracer.
func (f *frozen) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	select {
	case <-f.paused:
		<-f.resumed
	default:
	}
	return context.WithValue(ctx, statement{}, q.SQL)
}

// TraceQueryEnd is pgx.QueryTracer.
func (f *frozen) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(statement{}).(string)
	if !strings.Contains(sql, f.at) {
		return
	}
	select {
	case <-f.paused:
	default:
		close(f.paused)
	}
	<-f.resumed
}

// A leader that is paused, or cut off, in the middle of a transaction keeps its locks there. Postgres must take them away
// from it, or nobody could follow it.
func TestLeaderPausedInATransactionIsSucceeded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, at string }{
		{"with the lock on a leaf that every poll reads", `IN ACCESS EXCLUSIVE MODE NOWAIT`},
		{"with the lock on the lease, before it has parked a message", `INSERT INTO "orders"."outbox_parked"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := newOutbox(t)
			if _, err := db.Pool.Exec(t.Context(), `
				INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
				SELECT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint + 4) % 8,
					gen_random_uuid(), 'orders', 'old', 't', 'c', '{"n":1}'`); err != nil {
				t.Fatal(err)
			}
			leader := &frozen{at: c.at, paused: make(chan struct{}), resumed: make(chan struct{})}
			defer close(leader.resumed)
			pool := newMortalAt(t, db.URL, leader)
			t.Cleanup(pool.Close)
			refuse, _ := poison("bad", 1)
			broker := &outboxtest.Broker{Refuse: refuse}
			start(t, pool.Pool, broker, outbox.RelayOptions{Lease: time.Second, Retention: 10 * time.Minute}, often)
			write(t, db.Pool, message("orders", "bad", 1))
			<-leader.paused
			start(t, db.Pool, broker, outbox.RelayOptions{Retention: 10 * time.Minute})
			write(t, db.Pool, message("orders", "good", 1))
			waitFor(t, broker, 2)
		})
	}
}
