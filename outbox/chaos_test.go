package outbox_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/tally"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

var (
	seeds = flag.Int("outbox.seeds", 3, "seeded runs of the history test")
	seed  = flag.Uint64("outbox.seed", 0, "run the history test with this seed only")
)

// The whole promise against everything that can go wrong at once: writers of all kinds on hot keys, in a ring that turns
// while they are open; relays killed at every point between fetch and checkpoint, outages, two leaders at once.
func TestHistoryHasNoLossAndNoDisorder(t *testing.T) {
	t.Parallel()
	total := &tally.Tally{}
	first, runs := *seed, 1
	if first == 0 {
		first, runs = uint64(time.Now().UnixNano()), *seeds
	}
	t.Cleanup(func() {
		expected := append([]string{deposed, outage, truncated}, deaths...)
		for _, kind := range writerKinds {
			expected = append(expected, kind.name)
		}
		total.Report(t, "history", runs, expected...)
	})
	for seed := first; seed < first+uint64(runs); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("run it again with: make test-history SEED=%d", seed)
				}
			})
			c := &chaos{t: t, seed: seed, db: newOutbox(t), total: total}
			c.run()
		})
	}
}

// chaos is one seeded run. The seed decides what everybody does; what the scheduler does is not in its hands.
type chaos struct {
	t        *testing.T
	seed     uint64
	db       *pgtest.DB
	total    *tally.Tally
	history  outboxtest.History
	broker   outboxtest.Broker
	inFlight atomic.Int64 // records that were lost sight of before a checkpoint, and may be published again
}

// turn is how long a slot of the ring is: it turns once in 1.2 s.
const turn = 150 * time.Millisecond

// random are the dice of one of those that take part.
func (c *chaos) random(who uint64) *rand.Rand { return rand.New(rand.NewPCG(c.seed, who)) }

func (c *chaos) run() {
	shortenRing(c.t, c.db.Pool, turn)
	if _, err := c.db.Pool.Exec(c.t.Context(), `CREATE TABLE orders.scratch (n integer)`); err != nil {
		c.t.Fatal(err)
	}
	config := c.db.Pool.Config().ConnConfig
	snapshot := hold(c.t, config, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, `SELECT 1`)
	config.Database = "postgres"
	elsewhere := hold(c.t, config, pgx.TxOptions{}, `SELECT pg_current_xact_id()`)
	relaying, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	var writers, relays sync.WaitGroup
	for who := range uint64(4) {
		writers.Go(func() { c.writeMany(c.random(who)) })
	}
	writers.Go(c.writeForTheWholeRing)
	for who := range uint64(2) {
		relays.Go(func() { c.relayUntilKilled(relaying, c.random(100+who)) })
	}
	writers.Wait()
	snapshot()
	elsewhere()
	complete := c.wait(patience / 6)
	cancel()
	relays.Wait()
	if !complete { // on a machine so slow that they lose their leases before they do anything
		c.depose()
		start(c.t, c.db.Pool, &c.broker, outbox.RelayOptions{})
		c.wait(patience)
	}
	verdict := c.history.Judge(c.broker.Records())
	if err := verdict.Err(); err != nil {
		c.t.Error(err)
	}
	if inFlight := int(c.inFlight.Load()); verdict.Duplicates > inFlight {
		c.t.Errorf("%d duplicates, but only %d records were in flight when their relay or their answer was lost",
			verdict.Duplicates, inFlight)
	}
	c.total.Add("messages", c.history.CommittedCount())
	c.total.Add("duplicates", verdict.Duplicates)
}

// wait waits until everything has arrived, and not for ever: the verdict says what is missing.
func (c *chaos) wait(patience time.Duration) (complete bool) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.broker.Wait(ctx, c.history.Complete) == nil
}

// depose ends the lease. The leader is not told, so there are two for a while.
func (c *chaos) depose() {
	if _, err := c.db.Pool.Exec(context.WithoutCancel(c.t.Context()), `
		UPDATE orders.outbox_lease SET holder = '', expires_at = '-infinity'`); err != nil {
		c.t.Errorf("depose: %v", err)
	}
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

// hold opens a transaction that runs statement and then stays open until the returned function is called.
func hold(t testing.TB, config *pgx.ConnConfig, opts pgx.TxOptions, statement string) func() {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = conn.Close(context.WithoutCancel(t.Context())) }) // ends the transaction, too
	t.Cleanup(end)
	tx, err := conn.BeginTx(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
	return end
}
