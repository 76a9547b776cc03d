package inboxtest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/inbox/inboxtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func newShop(t *testing.T) *pgxpool.Pool {
	t.Helper()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, outbox.Migrations(), "public")
	db.Migrate(t, inbox.Migrations(), "public")
	if _, err := db.Pool.Exec(t.Context(), `CREATE TABLE shipments (number bigint GENERATED ALWAYS AS IDENTITY, id uuid, user_id text)`); err != nil {
		t.Fatal(err)
	}
	config := db.Pool.Config()
	config.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

const insert = `INSERT INTO shipments (id, user_id) VALUES ($1, $2)`

// Each handler breaks one promise as services do, and the trial says which.
func TestATrialFindsWhatHandlersDoWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ship func(pool *pgxpool.Pool) inbox.Handler
		says string // "": nothing is wrong
	}{
		{"nothing", func(*pgxpool.Pool) inbox.Handler {
			return func(ctx context.Context, tx pgx.Tx, msg inbox.Message) error {
				_, err := tx.Exec(ctx, insert, msg.ID, msg.Key)
				return err
			}
		}, ""},
		{"it writes past its transaction", func(pool *pgxpool.Pool) inbox.Handler {
			return func(ctx context.Context, _ pgx.Tx, msg inbox.Message) error {
				_, err := pool.Exec(ctx, insert, msg.ID, msg.Key)
				return err
			}
		}, "repeated, the first is"},
		{"it takes an error for a success", func(*pgxpool.Pool) inbox.Handler {
			return func(ctx context.Context, tx pgx.Tx, msg inbox.Message) error {
				if rand.IntN(10) > 0 {
					_, err := tx.Exec(ctx, insert, msg.ID, msg.Key)
					return err
				}
				return nil
			}
		}, "lost, the first is"},
		{"it remembers in memory what it does later", func(*pgxpool.Pool) inbox.Handler {
			var mu sync.Mutex
			later := map[string]inbox.Message{}
			return func(ctx context.Context, tx pgx.Tx, msg inbox.Message) error {
				mu.Lock()
				defer mu.Unlock()
				_, err := tx.Exec(ctx, insert, msg.ID, msg.Key)
				if before, ok := later[msg.Key]; ok && err == nil {
					_, err = tx.Exec(ctx, insert, before.ID, before.Key)
					delete(later, msg.Key)
				} else if err == nil && rand.IntN(3) == 0 {
					later[msg.Key] = msg
					_, err = tx.Exec(ctx, `DELETE FROM shipments WHERE id = $1`, msg.ID)
				}
				return err
			}
		}, "out of order, the first is"},
		{"it gives up", func(*pgxpool.Pool) inbox.Handler {
			return func(context.Context, pgx.Tx, inbox.Message) error {
				return inbox.Permanent(errors.New("not my cup of tea"))
			}
		}, "was given up, permanent: not my cup of tea"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			pool := newShop(t)
			err := prove(ctx, pool, inbox.Route{Topic: "orders", Type: "order.completed.v1", Handle: tt.ship(pool)})
			switch {
			case tt.says == "" && err != nil:
				t.Errorf("the trial of a good handler found: %v", err)
			case tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("the trial found %v, want it to say %q", err, tt.says)
			}
		})
	}
}

// F16, F18, F21: a batch handler, under every fault.
func TestATrialOfABatchHandlerReportsWhatWasDoneToIt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pool := newShop(t)
	route := inbox.Route{Topic: "orders", Type: "order.completed.v1", HandleBatch: func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
		for _, msg := range msgs {
			if _, err := tx.Exec(ctx, insert, msg.ID, msg.Key); err != nil {
				return err
			}
		}
		return nil
	}}
	var messages []inbox.Message
	for range 200 {
		messages = append(messages, inbox.Message{Topic: route.Topic, Key: "k" + string(rune('a'+rand.IntN(20))), Type: route.Type, Payload: []byte(`{}`)})
	}
	// Small batches, so that there are enough for every fault.
	sent, report, err := inboxtest.Trial{Pool: pool, Routes: []inbox.Route{route}, Messages: messages, Options: inbox.Options{BatchSize: 5}}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(sent) != len(messages) || report.Forgotten != len(sent)+report.Duplicates {
		t.Errorf("sent %d of %d messages: %+v", len(sent), len(messages), report)
	}
	for _, m := range sent {
		if m.ID == uuid.Nil {
			t.Fatalf("a message was sent without an id: %+v", m)
		}
	}
	var rows int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM shipments`).Scan(&rows); err != nil || rows != len(messages) {
		t.Errorf("%d shipments, %v, want %d", rows, err, len(messages))
	}
}

func TestATrialWithTooFewMessagesSaysThatItProvesLittle(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	route := inbox.Route{Topic: "orders", Type: "order.completed.v1", Handle: func(context.Context, pgx.Tx, inbox.Message) error { return nil }}
	_, _, err := inboxtest.Trial{Pool: newShop(t), Routes: []inbox.Route{route}, Seed: 7, Messages: []inbox.Message{
		{Topic: route.Topic, Key: "ann", Type: route.Type, Payload: []byte(`{}`)},
	}}.Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "trial with seed 7: a fault never happened") {
		t.Errorf("Run() = %v, want it to say that a fault never happened", err)
	}
}
