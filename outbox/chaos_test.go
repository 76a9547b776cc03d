package outbox_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

var (
	seeds = flag.Int("outbox.seeds", 3, "seeded runs of the history test")
	seed  = flag.Uint64("outbox.seed", 0, "run the history test with this seed only")
)

// The whole promise against everything that can go wrong at once: writers on hot keys with savepoints, rollbacks, early
// ids and late commits, and relays killed at every point between fetch, produce, ack and checkpoint.
func TestHistoryHasNoLossAndNoDisorder(t *testing.T) {
	t.Parallel()
	if *seed != 0 {
		runHistory(t, *seed)
		return
	}
	base := uint64(time.Now().UnixNano())
	for i := range uint64(*seeds) {
		t.Run(fmt.Sprint(base+i), func(t *testing.T) {
			t.Parallel()
			runHistory(t, base+i)
		})
	}
}

func runHistory(t *testing.T, seed uint64) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("run it again with: go test ./outbox -run TestHistory -outbox.seed=%d", seed)
		}
	})
	db, history := newOutbox(t), &outboxtest.History{}
	shortenRing(t, db.Pool, 150*time.Millisecond)
	held := holdSnapshot(t, db.Pool)
	broker := &outboxtest.Broker{}
	var writers, relays sync.WaitGroup
	writing, cancel := context.WithCancel(t.Context())
	for w := range uint64(5) {
		writers.Go(func() { writeHistory(t, db.Pool, history, rand.New(rand.NewPCG(seed, w))) })
	}
	writers.Go(func() { writeForTheWholeRing(t, db.Pool, history) })
	relays.Go(func() { relayUntilKilled(writing, t, db.URL, broker, rand.New(rand.NewPCG(seed, 100))) })
	relays.Go(func() { relayUntilKilled(writing, t, db.URL, broker, rand.New(rand.NewPCG(seed, 101))) })
	writers.Wait()
	held()
	cancel()
	relays.Wait()
	// One that is not killed publishes the rest.
	start(t, db.Pool, broker, outbox.RelayOptions{})
	waitFor(t, broker, history.CommittedCount())
	verdict := history.Judge(broker.Records())
	if err := verdict.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("seed %d: %d messages, %d duplicates", seed, history.CommittedCount(), verdict.Duplicates)
}

// shortenRing makes the slots of the ring so short that it turns many times in a test.
func shortenRing(t testing.TB, pool *pgxpool.Pool, width time.Duration) {
	t.Helper()
	_, err := pool.Exec(t.Context(), fmt.Sprintf(`
		ALTER TABLE orders.outbox ALTER slot
		SET DEFAULT (floor(extract(epoch FROM clock_timestamp()) / %g)::bigint %% 8)`, width.Seconds()))
	if err != nil {
		t.Fatal(err)
	}
}

// holdSnapshot opens a reader that holds a snapshot, as a backup does, until the returned function is called.
func holdSnapshot(t testing.TB, pool *pgxpool.Pool) func() {
	t.Helper()
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}
}

// writeHistory commits transactions of all kinds on few keys.
func writeHistory(t *testing.T, pool *pgxpool.Pool, history *outboxtest.History, random *rand.Rand) {
	for range 60 {
		var batch []outbox.Message
		for range 1 + random.IntN(4) {
			m := message("orders", fmt.Sprint("key-", random.IntN(4)), random.IntN(1000))
			m.ID = uuid.New()
			if random.IntN(50) == 0 {
				m.Payload = make([]byte, 10_000) // too large for a poll to return
			}
			batch = append(batch, m)
		}
		if err := writeOnce(t, pool, history, random, batch); err != nil {
			t.Errorf("writer: %v", err)
			return
		}
	}
}

// writeForTheWholeRing holds a transaction open until its slot is current for the second time.
func writeForTheWholeRing(t *testing.T, pool *pgxpool.Pool, history *outboxtest.History) {
	m := message("orders", "slow", 1)
	m.ID = uuid.New()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if err := (outbox.Writer{Schema: schema}).Write(t.Context(), tx, m); err != nil {
			return err
		}
		history.Written(m)
		_, err := tx.Exec(t.Context(), `SELECT pg_sleep(1.4)`)
		return err
	})
	if err != nil {
		t.Errorf("slow writer: %v", err)
		return
	}
	history.Committed(m)
}

var errChangedMind = errors.New("rolled back on purpose")

func writeOnce(
	t *testing.T, pool *pgxpool.Pool, history *outboxtest.History, random *rand.Rand, batch []outbox.Message,
) error {
	ctx, kind := t.Context(), random.IntN(9)
	if kind == 7 {
		return writePrepared(ctx, pool, history, batch)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if kind == 1 { // the id is taken early, the message written late
			if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id(), pg_sleep(0.02)`); err != nil {
				return err
			}
		}
		inner := tx
		if kind == 2 || kind == 3 {
			sub, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			inner = sub
		}
		if kind == 4 { // more subtransactions than a snapshot lists
			if _, err := tx.Exec(ctx, `
				DO $$ BEGIN FOR i IN 1..70 LOOP
					BEGIN PERFORM pg_current_xact_id(); CREATE TEMPORARY TABLE IF NOT EXISTS s (n int); INSERT INTO s VALUES (i);
					EXCEPTION WHEN division_by_zero THEN END;
				END LOOP; END $$`); err != nil {
				return err
			}
		}
		if err := (outbox.Writer{Schema: schema}).Write(ctx, inner, batch...); err != nil {
			return err
		}
		switch kind {
		case 2:
			if err := inner.Commit(ctx); err != nil {
				return err
			}
		case 3: // a savepoint undone: nothing of it may arrive
			return inner.Rollback(ctx)
		case 5:
			return errChangedMind
		case 6: // commits long after its row got its number
			if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, random.Float64()/16); err != nil {
				return err
			}
		}
		history.Written(batch...)
		return nil
	})
	switch {
	case kind == 3 || errors.Is(err, errChangedMind):
		return nil
	case err != nil:
		return err
	}
	history.Committed(batch...)
	return nil
}

// writePrepared commits in two phases: the transaction is open on no connection in between.
func writePrepared(ctx context.Context, pool *pgxpool.Pool, history *outboxtest.History, batch []outbox.Message) error {
	name := uuid.NewString()
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after PREPARE there is nothing to roll back
	if err := (outbox.Writer{Schema: schema}).Write(ctx, tx, batch...); err != nil {
		return err
	}
	history.Written(batch...)
	if _, err := tx.Exec(ctx, `PREPARE TRANSACTION '`+name+`'`); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, `COMMIT PREPARED '`+name+`'`); err != nil {
		return err
	}
	history.Committed(batch...)
	return nil
}

// relayUntilKilled runs one relay after the other and kills each at a point of its life, until ctx ends.
func relayUntilKilled(
	ctx context.Context, t *testing.T, url string, broker *outboxtest.Broker, random *rand.Rand,
) {
	for ctx.Err() == nil {
		point, after := random.IntN(4), 1+random.IntN(8)
		pages := 0
		pool := newMortalAt(t, url)
		run, stop := context.WithCancel(context.WithoutCancel(ctx))
		die := func(at int) bool {
			if point == at {
				pages++
			}
			if point != at || pages < after {
				return false
			}
			pool.kill()
			stop()
			return true
		}
		relay, err := outbox.NewRelay(pool.Pool, deadly(broker, random, die), outbox.RelayOptions{
			Schema: schema, PageSize: 20, Lease: time.Second,
		})
		if err != nil {
			t.Error(err)
			stop()
			return
		}
		relay.SetSlotWidth(150 * time.Millisecond)
		timer := time.AfterFunc(time.Duration(50+random.IntN(1500))*time.Millisecond, func() {
			if point == 3 { // told to stop, it gives its lease away
				stop()
				return
			}
			pool.kill()
			stop()
		})
		if err := relay.Run(run); err != nil {
			t.Error(err)
		}
		timer.Stop()
		stop()
		pool.Close()
	}
}

// deadly publishes to broker, with outages, and asks at each point of a page whether its relay dies there.
func deadly(broker *outboxtest.Broker, random *rand.Rand, die func(at int) bool) outbox.Publisher {
	return publisherFunc(func(ctx context.Context, page []outbox.Record) []error {
		if die(0) { // fetched, not produced
			return failAll(page, outboxtest.ErrDown)
		}
		if random.IntN(20) == 0 { // an outage, or an answer that is lost
			if random.IntN(2) == 0 {
				broker.Publish(ctx, page)
			}
			return failAll(page, outboxtest.ErrDown)
		}
		errs := broker.Publish(ctx, page)
		if die(1) { // produced, the answer lost
			return failAll(page, outboxtest.ErrDown)
		}
		die(2) // acked, not saved
		return errs
	})
}

// publisherFunc is a function that is a publisher.
type publisherFunc func(context.Context, []outbox.Record) []error

func (f publisherFunc) Publish(ctx context.Context, page []outbox.Record) []error {
	return f(ctx, page)
}

func failAll(page []outbox.Record, err error) []error {
	errs := make([]error, len(page))
	for i := range errs {
		errs[i] = err
	}
	return errs
}
