package outbox_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
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
	old := writeToOldLeaf(t, db.Pool, message("orders", "a", 1))
	write(t, db.Pool, message("orders", "a", 2))
	// Another relay of this outbox that has published nothing yet.
	slow := &outboxtest.Broker{}
	slow.SetDown(true)
	opts := shortRetention()
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
	eventually(t, func() error { return isEmpty(t, db.Pool, old) })
	if n := rowsIn(t, db.Pool, (old+4)%8); n == 0 {
		t.Error("the current leaf was truncated")
	}
}

func shortRetention() outbox.RelayOptions { return outbox.RelayOptions{Retention: 10 * time.Minute} }

// writeToOldLeaf writes half a ring away from the current leaf, so that a test may run across the turn of a slot. It
// returns the leaf.
func writeToOldLeaf(t testing.TB, pool *pgxpool.Pool, m outbox.Message) (slot int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
		SELECT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint + 4) % 8, gen_random_uuid(), $1, $2, $3, 'c', $4
		RETURNING slot`, m.Topic, m.Key, m.Type, m.Payload).Scan(&slot); err != nil {
		t.Fatal(err)
	}
	return slot
}

func isEmpty(t *testing.T, pool *pgxpool.Pool, slot int) error {
	t.Helper()
	if n := rowsIn(t, pool, slot); n != 0 {
		return fmt.Errorf("leaf %d still has %d rows", slot, n)
	}
	return nil
}

// adjustable gives the database a clock that a test can set, ahead of the middle of the present slot. It is what the
// returned pool's statements see, and the messages of every writer.
func adjustable(t *testing.T, db *pgtest.DB) (pool *pgxpool.Pool, set func(ahead time.Duration)) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), `
		CREATE SCHEMA set;
		CREATE TABLE set.ahead (seconds float8 NOT NULL);
		INSERT INTO set.ahead SELECT 300 - extract(epoch FROM clock_timestamp())::float8::numeric % 600;
		CREATE FUNCTION set.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
			SELECT pg_catalog.clock_timestamp() + (SELECT seconds FROM set.ahead) * interval '1 second'
		$$;
		ALTER TABLE orders.outbox
			ALTER slot SET DEFAULT (floor(extract(epoch FROM set.clock_timestamp()) / 600)::bigint % 8)`); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), db.URL+"&search_path=set,pg_catalog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var middle float64
	if err := pool.QueryRow(t.Context(), `SELECT seconds FROM ahead`).Scan(&middle); err != nil {
		t.Fatal(err)
	}
	return pool, func(ahead time.Duration) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), `UPDATE set.ahead SET seconds = $1`, middle+ahead.Seconds()); err != nil {
			t.Fatal(err)
		}
	}
}

// The age of a leaf is Postgres' to say: a relay whose own clock is wrong keeps the leaf that is written now, and gives
// back one that is old.
func TestRingTurnsByTheClockOfPostgres(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	pool, set := adjustable(t, db)
	set(4 * 10 * time.Minute) // to the relay's own clock the current leaf is the old one, and the old one the current
	old := writeToOldLeaf(t, pool, message("orders", "a", 1))
	write(t, db.Pool, message("orders", "a", 2))
	start(t, pool, broker, shortRetention(), often)
	waitFor(t, broker, 2)
	eventually(t, func() error { return isEmpty(t, db.Pool, old) })
	if n := rowsIn(t, db.Pool, (old+4)%8); n != 1 {
		t.Errorf("the current leaf has %d rows, want 1", n)
	}
}

// However far the clock goes, and whichever way, while a relay is down: what it has not published stays.
func TestRelayThatIsDownLongerThanTheRingLosesNothing(t *testing.T) {
	t.Parallel()
	jumps := rand.New(rand.NewPCG(1, 2))
	for _, tt := range []struct {
		name  string
		ahead func(step int) time.Duration
	}{
		{"the ring turns three times", func(step int) time.Duration { return time.Duration(step) * 10 * time.Minute }},
		{"the clock runs backwards", func(step int) time.Duration { return -time.Duration(step) * 10 * time.Minute }},
		{"the clock jumps", func(int) time.Duration { return time.Duration(jumps.Int64N(int64(1000*time.Hour))) - 500*time.Hour }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newOutbox(t)
			pool, set := adjustable(t, db)
			opts := shortRetention()
			opts.Name = "down"
			down, up := &outboxtest.Broker{}, &outboxtest.Broker{}
			_, stop := start(t, pool, down, opts)
			write(t, db.Pool, message("orders", "a", 0))
			waitFor(t, down, 1)
			stop()
			opts.Name = ""
			start(t, pool, up, opts, often)
			const steps = 24
			for n := 1; n <= steps; n++ {
				set(tt.ahead(n))
				write(t, db.Pool, message("orders", "a", n))
				waitFor(t, up, n+1) // by a leader that has had the time to truncate
			}
			opts.Name = "down"
			start(t, pool, down, opts)
			eachOnceInOrder(t, waitFor(t, down, steps+1), "a", steps+1)
			eachOnceInOrder(t, up.Records(), "a", steps+1)
			for slot := range 8 { // each is old once in the next turn of the ring, and everybody has passed it
				set(tt.ahead(steps) + time.Duration(slot)*10*time.Minute)
				eventually(t, func() error {
					var behind int
					err := db.Pool.QueryRow(t.Context(), `
						SELECT (floor(extract(epoch FROM set.clock_timestamp()) / 600)::bigint + 4) % 8`).Scan(&behind)
					if err != nil {
						return err
					}
					return isEmpty(t, db.Pool, behind)
				})
			}
		})
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
