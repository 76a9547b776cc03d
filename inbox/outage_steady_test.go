//go:build servers

package inbox_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

const (
	loadKeys   = 40
	loadBurst  = 10
	loadEvery  = 50 * time.Millisecond // 200 messages a second
	downProbes = 16                    // some 45 s, most of them with the longest pause between two
)

// load is a producer that goes on at one rate, whatever becomes of what it sends.
type load struct {
	mu   sync.Mutex
	sent [loadKeys]int // the last seq of each key
}

func (l *load) run(ctx context.Context, w *world) {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	for next := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var records []*kgo.Record
		l.mu.Lock()
		for range loadBurst {
			key := next % loadKeys
			next++
			l.sent[key]++
			records = append(records, record(fmt.Sprintf("u%d", key), l.sent[key], ""))
		}
		l.mu.Unlock()
		if err := w.client.ProduceSync(context.WithoutCancel(ctx), records...).FirstErr(); err != nil {
			w.Errorf("produce: %v", err)
			return
		}
	}
}

func (l *load) total() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, seq := range l.sent {
		n += seq
	}
	return n
}

// F20 with the time it takes: Postgres is away until the circuit has opened and its probes have long become as rare as they
// get, and messages come at the same rate before, meanwhile and afterwards.
func TestPostgresDownForLongUnderSteadyLoadMakesNoDeadLetters(t *testing.T) {
	t.Parallel()
	w, server := newServerWorld(t)
	opts, log := w.patient()
	c := w.consumer(onlyPlaced(careless), opts)
	w.run(c)
	var l load
	var producer sync.WaitGroup
	defer producer.Wait()
	producing, enough := context.WithCancel(t.Context())
	defer enough()
	producer.Go(func() { l.run(producing, w) })
	w.wait("the load is handled", func() bool { return w.count(`SELECT count(*) FROM effects`) >= loadKeys })

	server.stop(t)
	w.wait("a pause", func() bool { return log.containing(circuitOpened) > 0 })
	atPause := l.total()
	w.wait("failed probes", func() bool { return c.FailedProbes() >= downProbes })
	meanwhile := l.total() - atPause
	server.start(t)
	w.db.Pool.Reset()
	w.wait("work goes on", func() bool { return c.Ready() == nil })
	back := l.total()
	w.wait("the load is handled again", func() bool { return w.count(`SELECT count(*) FROM effects`) > back })
	enough()
	producer.Wait()

	total := l.total()
	t.Logf("%d messages, %d of them while Postgres was away", total, meanwhile)
	if meanwhile < loadKeys {
		t.Errorf("%d messages came while Postgres was away, want some of each key", meanwhile)
	}
	w.wait("everything", func() bool { return w.count(`SELECT count(*) FROM effects`) >= total && w.lag() == 0 })
	for key, seq := range l.sent {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(seq)...)
	}
	w.wantNobodyDead()
	if n := len(w.parked(inbox.Filter{})); n != 0 {
		t.Errorf("%d messages parked, want none%s", n, w.describeParked())
	}
}
