package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// TestOrderHoldsUnderEverything runs seeded rounds: members come and go, an owner that lost its partitions goes on, the
// database's connections are killed, messages arrive several times, handlers fail in every way, dead letters are
// replayed again and again. Each message must have one effect, each key's effects must be in order.
//
// ORDERFLOW_TEST_SEED repeats a round; ORDERFLOW_TEST_ROUNDS sets how many are run.
func TestOrderHoldsUnderEverything(t *testing.T) {
	t.Parallel()
	seed, rounds := rand.Uint64(), 1
	if s := os.Getenv("ORDERFLOW_TEST_SEED"); s != "" {
		fixed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed, rounds = fixed, 1
	}
	if s := os.Getenv("ORDERFLOW_TEST_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		rounds = n
	}
	for i := range rounds {
		seed := seed + uint64(i)
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { (&round{world: newWorld(t), seed: seed}).run() })
	}
}

const (
	orderKeys = 20
	orderSeqs = 12
)

// round is one run of the order test.
type round struct {
	*world
	seed  uint64
	fixed atomic.Bool
}

// chance is a number below 100 that depends on the seed and the message only.
func (r *round) chance(m inbox.Message) int {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %s", r.seed, m.Key, m.Payload)
	return int(h.Sum64() % 100)
}

// handle fails in the way that the message was given.
func (r *round) handle(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if err := apply(ctx, tx, m); err != nil { // what follows must roll it back
		return err
	}
	switch c := r.chance(m); {
	case c < 4 && !r.fixed.Load():
		return inbox.Permanent(errors.New("not valid"))
	case c < 7 && m.Attempt < 3:
		return errors.New("not yet")
	case c < 9 && m.Attempt < 6:
		return errors.New("not for long")
	case c < 11 && m.Attempt < 4:
		panic("boom")
	case c < 12 && m.Attempt < 3:
		return inbox.RetryAfter(30*time.Millisecond, errors.New("later"))
	case c < 13 && rand.IntN(3) == 0:
		return inbox.Outage(errors.New("provider is away"))
	}
	return nil
}

func (r *round) member() *inbox.Consumer {
	opts := r.options()
	opts.Evidence = -1
	opts.Lease = 300 * time.Millisecond
	opts.BatchSize = 1 + rand.IntN(40)
	opts.InlineAttempts = 1 + rand.IntN(3)
	opts.Log = nil
	return r.consumer(onlyPlaced(r.handle), opts)
}

func (r *round) run() {
	random := rand.New(rand.NewPCG(r.seed, 0))
	zombie := r.member()
	zombie.Overlap("zombie")
	r.world.run(zombie)
	stops := []func(){r.world.run(r.member()), r.world.run(r.member())}
	killer, err := pgxpool.New(r.Context(), r.db.URL)
	if err != nil {
		r.Fatal(err)
	}
	defer killer.Close()

	waves := r.waves(random)
	for _, wave := range waves {
		r.produce(wave...)
		switch random.IntN(4) {
		case 0: // a member leaves, another joins
			i := random.IntN(len(stops))
			stops[i]()
			stops[i] = r.world.run(r.member())
		case 1:
			_, err = killer.Exec(r.Context(), `
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5`)
		case 2:
			_, err = inbox.Replay(r.Context(), killer, inbox.Filter{}, "chaos")
		}
		if err != nil {
			r.Fatalf("seed %d: %v", r.seed, err)
		}
	}
	r.fixed.Store(true)
	r.db.Pool.Reset() // a connection that was terminated would show it to whoever uses it next: here, the test
	r.wait("everything replayed and done", func() bool {
		if _, err := inbox.Replay(r.Context(), killer, inbox.Filter{}, "chaos"); err != nil {
			r.Fatalf("seed %d: %v", r.seed, err)
		}
		return r.count(`SELECT count(*) FROM effects`) >= orderKeys*orderSeqs &&
			r.count(`SELECT count(*) FROM processed_messages WHERE state = 'done'`) == orderKeys*orderSeqs && r.lag() == 0
	})
	for key := range orderKeys {
		r.wantEffects(fmt.Sprintf("u%d", key), seqs(orderSeqs)...)
	}
	if n := r.count(`SELECT (SELECT count(*) FROM inbox_holds) + (SELECT count(*) FROM parked_messages)`); n != 0 {
		r.Errorf("%d holds and parked messages left, want 0%s", n, r.describeParked())
	}
	if r.Failed() {
		r.Logf("repeat with ORDERFLOW_TEST_SEED=%d", r.seed)
	}
}

// waves returns the messages in the order of their production. First appearances of a key are in order; any message
// may come again later.
func (r *round) waves(random *rand.Rand) [][]*kgo.Record {
	var sent []*kgo.Record
	waves := make([][]*kgo.Record, orderSeqs)
	for i := range waves {
		for _, key := range random.Perm(orderKeys) {
			rec := record(fmt.Sprintf("u%d", key), i+1, "")
			sent = append(sent, rec)
			waves[i] = append(waves[i], rec)
			for random.IntN(3) == 0 {
				again := *sent[random.IntN(len(sent))]
				waves[i] = append(waves[i], &again)
			}
		}
	}
	return waves
}
