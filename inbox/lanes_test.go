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
		l := newLanes(1, 0, 100, c)
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

func TestASlowKeyDelaysNoOther(t *testing.T) {
	t.Parallel()
	const fast, slow = time.Millisecond, 100 * time.Millisecond
	for _, tc := range []struct {
		sentence string
		takes    map[string]time.Duration
		want     []string // the keys of the batches behind the first
	}{
		{"all alike", map[string]time.Duration{"a": fast, "b": fast, "c": fast}, []string{"aabbcc"}},
		{"one slow", map[string]time.Duration{"a": fast, "b": slow, "c": fast}, []string{"aa", "b", "cc", "b"}},
		{"the first one slow", map[string]time.Duration{"a": slow, "b": fast, "c": fast}, []string{"a", "bbcc", "a"}},
		{"all slow", map[string]time.Duration{"a": slow, "b": slow, "c": slow}, []string{"aabbcc"}},
		{"slow, but not for long", map[string]time.Duration{"a": 1, "b": 1, "c": fast}, []string{"aabbcc"}},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			l := newLanes(100, 0, 100, newCircuit(slog.New(slog.DiscardHandler)))
			part, rt := newPartition(topicPartition{"orders", 0}), &route{pace: pace{usual: min(tc.takes["a"], tc.takes["c"])}}
			handled := func(b *batch) {
				for _, it := range b.items {
					it.took = tc.takes[it.key]
				}
				finishAll(l, b, decision{fate: done})
			}
			inLane(l, part, rt, "a", "b", "c")
			first := l.take()
			inLane(l, part, rt, "a", "a", "b", "b", "c", "c") // arrive meanwhile
			handled(first)
			for _, want := range tc.want {
				b := l.take()
				if keys := keysOf(b); keys != want {
					t.Fatalf("a batch of %q, want %q", keys, want)
				}
				handled(b)
			}
		})
	}
}
