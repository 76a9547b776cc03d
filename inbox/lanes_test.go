package inbox

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// countingLocker counts how often a waiter of a condition wakes up.
type countingLocker struct {
	sync.Locker
	wakes *atomic.Int64
}

func (l countingLocker) Lock() {
	l.wakes.Add(1)
	l.Locker.Lock()
}

func TestWorkersThatWaitForAProbeLookOncePerDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(slog.New(slog.DiscardHandler))
		c.open, c.probing = true, true // and the probe does not come back
		l := newLanes(1, 0, c)
		var wakes atomic.Int64
		l.changed = sync.NewCond(countingLocker{&l.mu, &wakes})
		part := newPartition(topicPartition{"orders", 0})
		it := &item{key: "u1", route: &route{}}
		it.track = &tracked{part: part}
		l.mu.Lock()
		l.add(part, it)
		l.mu.Unlock()
		const workers, delays = 4, 8
		var all sync.WaitGroup
		for range workers {
			all.Go(func() { l.take() })
		}
		time.Sleep(delays*circuitMin + circuitMin/2) //nolint:forbidigo // the bubble's clock
		if n := wakes.Load(); n < workers || n > workers*delays {
			t.Errorf("%d workers looked %d times within %d delays, want once each per delay", workers, n, delays)
		}
		l.close()
		all.Wait()
	})
}
