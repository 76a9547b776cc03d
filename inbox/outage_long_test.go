package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// Half of all calls fail for ten minutes, with the delays and limits that a consumer has by default. Nobody waits so long: what
// is held is due by Postgres' clock, so the test has the minutes pass by moving every hold towards now.
func TestTenMinutesOfHalfTheCallsFailingKillNoMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.RetryMin, opts.RetryMax = 0, 0 // as they are by default
	const keys, waves = 40, 20          // a wave each half minute: of every key one message
	var sick atomic.Bool
	sick.Store(true)
	var calls, failed, again atomic.Int64
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if !sick.Load() {
			return apply(ctx, tx, m)
		}
		calls.Add(1)
		if m.Attempt > 5 { // three of them inline
			again.Add(1)
		}
		if rand.IntN(2) == 0 {
			failed.Add(1)
			return errors.New("connection reset by peer")
		}
		return apply(ctx, tx, m)
	}, opts)
	pass := func(d time.Duration) {
		t.Helper()
		_, err := w.db.Pool.Exec(t.Context(), `
			UPDATE inbox_holds SET next_at = next_at - $1 * interval '1 millisecond' WHERE state = 'held'`, d.Milliseconds())
		if err != nil {
			t.Fatal(err)
		}
		w.wait("what is due was tried", func() bool {
			return w.count(`SELECT count(*) FROM inbox_holds WHERE state = 'held' AND (next_at <= now() OR leased_until > now())`) == 0
		})
	}
	for wave := range waves {
		records := make([]*kgo.Record, keys)
		for key := range records {
			records[key] = record(fmt.Sprintf("u%d", key), wave+1, "")
		}
		w.produce(records...)
		w.wait("a fate or a hold for each", func() bool { return w.lag() == 0 })
		for range 3 {
			pass(10 * time.Second)
		}
	}
	if share := 100 * failed.Load() / calls.Load(); share < 25 || again.Load() == 0 {
		t.Errorf("%d %% of %d calls failed, %d were the third try of a held message or a later one; the test proves nothing", share, calls.Load(), again.Load())
	}
	if w.wantNobodyDead(); t.Failed() {
		return
	}

	sick.Store(false)
	w.wait("everything", func() bool {
		pass(time.Hour)
		return w.count(`SELECT count(*) FROM effects`) >= keys*waves
	})
	for key := range keys {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(waves)...)
	}
	w.wantNobodyDead()
}
