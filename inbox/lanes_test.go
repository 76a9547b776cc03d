package inbox

import (
	"log/slog"
	"slices"
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

// handled gives each message of a batch the time that its key takes, and finishes it.
func handled(l *lanes, b *batch, takes map[string]time.Duration) {
	for _, it := range b.items {
		it.took = takes[it.key]
	}
	l.finish(b, func(*item) bool { return true }, func(*item) decision { return decision{} })
}

func TestASlowKeyDelaysNoOther(t *testing.T) {
	t.Parallel()
	const fast, slow = time.Millisecond, 100 * time.Millisecond
	for _, tc := range []struct {
		sentence string
		takes    map[string]time.Duration
		want     [][]string // the keys of the batches behind the first
	}{
		{"all alike", map[string]time.Duration{"a": fast, "b": fast, "c": fast}, [][]string{{"a", "a", "b", "b", "c", "c"}}},
		{"one slow", map[string]time.Duration{"a": fast, "b": slow, "c": fast}, [][]string{{"a", "a"}, {"b"}, {"c", "c"}, {"b"}}},
		{"the first one slow", map[string]time.Duration{"a": slow, "b": fast, "c": fast}, [][]string{{"a"}, {"b", "b", "c", "c"}, {"a"}}},
		{"all slow", map[string]time.Duration{"a": slow, "b": slow, "c": slow}, [][]string{{"a", "a", "b", "b", "c", "c"}}},
		{"slow, but not for long", map[string]time.Duration{"a": 1, "b": 1, "c": fast}, [][]string{{"a", "a", "b", "b", "c", "c"}}},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			l := newLanes(100, 0, 100, newCircuit(slog.New(slog.DiscardHandler)))
			rt := &route{pace: pace{usual: min(tc.takes["a"], tc.takes["c"])}}
			part := newPartition(topicPartition{"orders", 0})
			add := func(times int) {
				l.mu.Lock()
				defer l.mu.Unlock()
				for _, key := range []string{"a", "b", "c"} {
					for range times {
						it := &item{key: key, route: rt, track: &tracked{part: part}}
						part.tracked = append(part.tracked, it.track)
						l.add(part, it)
					}
				}
			}
			add(1)
			first := l.take()
			add(2) // arrives meanwhile
			handled(l, first, tc.takes)
			for _, want := range tc.want {
				b := l.take()
				var keys []string
				for _, it := range b.items {
					keys = append(keys, it.key)
				}
				if !slices.Equal(keys, want) {
					t.Fatalf("a batch of %q, want %q", keys, want)
				}
				handled(l, b, tc.takes)
			}
		})
	}
}
