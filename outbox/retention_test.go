package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// often makes a relay look for leaves to truncate all the time.
func often(r *outbox.Relay) { r.SetTidyEvery(10 * time.Millisecond) }

func TestRingKeepsWhatARelayHasNotPassed(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	role := createRole(t, db, "relay")
	if _, err := db.Pool.Exec(t.Context(), `SELECT orders.outbox_grant(NULL, $1)`, role.role); err != nil {
		t.Fatal(err)
	}
	// Half a ring away from the current leaf, so that the test may run across the turn of a slot.
	var current, old int
	if err := db.Pool.QueryRow(t.Context(), `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
		SELECT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint + 4) % 8,
			gen_random_uuid(), 'orders', 'a', 't', 'c', '{"n":1}'
		RETURNING slot, (slot + 4) % 8`).Scan(&old, &current); err != nil {
		t.Fatal(err)
	}
	write(t, db.Pool, message("orders", "a", 2))
	// Another relay of this outbox that has published nothing yet.
	slow := &outboxtest.Broker{}
	slow.SetDown(true)
	opts := outbox.RelayOptions{Retention: 10 * time.Minute}
	opts.Name = "slow"
	start(t, db.Pool, slow, opts)
	eventually(t, func() error {
		status, err := outbox.Inspect(t.Context(), db.Pool, schema)
		if err == nil && len(status.Relays) != 2 {
			err = errors.New("the slow relay is not known yet")
		}
		return err
	})
	fast := &outboxtest.Broker{}
	opts.Name = ""
	start(t, role.pool, fast, opts, often)
	waitFor(t, fast, 2)
	for n := 3; n < 20; n++ { // each one is published by a leader that has had the time to truncate
		write(t, db.Pool, message("orders", "a", n))
		waitFor(t, fast, n)
	}
	if n := rowsIn(t, db.Pool, old); n != 1 {
		t.Fatalf("leaf %d has %d rows, want the one that the slow relay has not published", old, n)
	}
	slow.SetDown(false)
	waitFor(t, slow, 19)
	eventually(t, func() error {
		if n := rowsIn(t, db.Pool, old); n != 0 {
			return fmt.Errorf("leaf %d still has %d rows after every relay has passed", old, n)
		}
		return nil
	})
	if n := rowsIn(t, db.Pool, current); n == 0 {
		t.Error("the current leaf was truncated")
	}
}

func rowsIn(t *testing.T, pool *pgxpool.Pool, slot int) (rows int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), fmt.Sprintf(`SELECT count(*) FROM orders.outbox_%d`, slot)).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestHealthTurnsRedOnTheAgeOfTheOldestMessage(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	relay, _ := start(t, db.Pool, broker, outbox.RelayOptions{MaxAge: 2 * time.Second})
	eventually(t, relay.Healthy)
	broker.SetDown(true)
	write(t, db.Pool, message("orders", "a", 1))
	eventually(t, func() error {
		err := relay.Healthy()
		if err == nil {
			return errors.New("Healthy = nil while a message waits, want its age")
		}
		if !strings.Contains(err.Error(), "oldest of 1 unpublished") {
			return fmt.Errorf("while a message waits, want its age: %w", err)
		}
		return nil
	})
	broker.SetDown(false)
	eventually(t, relay.Healthy)
}

func TestNewRelayNamesEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := outbox.NewRelay(nil, &outboxtest.Broker{}, outbox.RelayOptions{
		PageSize: -1, Lease: time.Millisecond, MinPoll: time.Microsecond, Retention: time.Minute,
	})
	for _, option := range []string{"PageSize", "Lease", "MinPoll", "Retention"} {
		if err == nil || !strings.Contains(err.Error(), option) {
			t.Errorf("NewRelay = %v, want it to name %s", err, option)
		}
	}
}
