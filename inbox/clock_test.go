package inbox

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// What waits for a time, on the clock of a bubble: it moves when everybody waits, so every duration here is exact. Nothing in
// these tests reads from a network; docs/kfake.md says why.

// inLane puts messages into their lanes, a lane for each key.
func inLane(l *lanes, part *partition, rt *route, keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		it := &item{key: key, route: rt}
		it.track = &tracked{part: part}
		part.tracked = append(part.tracked, it.track)
		l.add(part, it)
	}
	l.changed.Broadcast()
}

func keysOf(b *batch) (keys string) {
	for _, it := range b.items {
		keys += it.key
	}
	return keys
}

// finishAll ends a batch; all of its messages get the decision.
func finishAll(l *lanes, b *batch, d decision) {
	l.finish(b, func(*item) bool { return d.fate != waits }, func(*item) decision { return d })
}

// takeAt takes a batch and checks of which keys it is and when it came.
func takeAt(t *testing.T, l *lanes, since time.Time, keys string, after time.Duration) *batch {
	t.Helper()
	b := l.take()
	if got, took := keysOf(b), time.Since(since); got != keys || took != after {
		t.Errorf("took a batch of %q after %v, want one of %q after %v", got, took, keys, after)
	}
	return b
}

func TestABatchWaitsForMoreUntilItsTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const linger = 10 * time.Minute
		l := newLanes(3, linger, 100, newCircuit(slog.New(slog.DiscardHandler)))
		part, rt := newPartition(topicPartition{"orders", 0}), &route{}
		began := time.Now()
		inLane(l, part, rt, "a", "b")
		finishAll(l, takeAt(t, l, began, "ab", linger), decision{fate: done})
		began = time.Now()
		inLane(l, part, rt, "c", "d", "e")
		finishAll(l, takeAt(t, l, began, "cde", 0), decision{fate: done})
		// One that comes while others wait does not make them wait longer.
		began = time.Now()
		inLane(l, part, rt, "f")
		time.AfterFunc(linger/2, func() { inLane(l, part, rt, "g") })
		finishAll(l, takeAt(t, l, began, "fg", linger), decision{fate: done})
	})
}

func TestOnlyTheKeyOfAFailedMessageWaitsForItsNextTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const delay = 700 * time.Millisecond
		l := newLanes(1, 0, 100, newCircuit(slog.New(slog.DiscardHandler)))
		part, rt := newPartition(topicPartition{"orders", 0}), &route{}
		began := time.Now()
		inLane(l, part, rt, "a", "a")
		finishAll(l, takeAt(t, l, began, "a", 0), decision{fate: waits, retryIn: delay})
		inLane(l, part, rt, "b")
		finishAll(l, takeAt(t, l, began, "b", 0), decision{fate: done})
		finishAll(l, takeAt(t, l, began, "a", delay), decision{fate: done})
		finishAll(l, takeAt(t, l, began, "a", delay), decision{fate: done})
	})
}

func TestAnOpenCircuitProbesOneMessageAtATimeAndEverMoreRarely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("connection refused")
		c := newCircuit(slog.New(slog.DiscardHandler))
		l := newLanes(10, 0, 100, c)
		part, rt := newPartition(topicPartition{"orders", 0}), &route{}
		inLane(l, part, rt, "a", "b")
		began := time.Now()
		b := takeAt(t, l, began, "ab", 0)
		c.fail(away, b.probe)
		finishAll(l, b, decision{fate: waits})
		for n, most := 0, circuitMin; n < 10; n, most = n+1, min(2*most, circuitMax) {
			began = time.Now()
			b = l.take()
			if took := time.Since(began); !b.probe || len(b.items) != 1 || took < most/2 || took > most {
				t.Errorf("probe %d: %d messages after %v, want 1 after %v to %v", n, len(b.items), took, most/2, most)
			}
			c.fail(away, b.probe)
			finishAll(l, b, decision{fate: waits})
		}
		c.succeed(l.take().probe, true)
		if err := c.openError(); err != nil {
			t.Errorf("after a probe that succeeded: %v, want the circuit closed", err)
		}
	})
}

func TestInlineTriesAreSpreadWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			p := &pass{c: &Consumer{health: newHealth(), opts: Options{}.withDefaults("test")}}
			it := &item{key: "a", route: &route{}}
			began := time.Now()
			var d decision
			for tries := 1; ; tries++ {
				p.fates, p.blocked = map[*item]decision{}, map[string]decision{}
				if err := p.decide(it, errors.New("not yet")); err != nil {
					t.Fatal(err)
				}
				if d = p.fates[it]; d.fate != waits {
					break
				}
				// Full jitter below 50 ms × 4^n; see backoff.go.
				if most := inlineMin << (2 * tries); d.retryIn > most || p.blocked["a"].retryIn != d.retryIn {
					t.Errorf("try %d is followed by the next one after %v, its key by %v, want the same and at most %v", tries, d.retryIn, p.blocked["a"].retryIn, most)
				}
				if it.attempts++; it.firstFailed.IsZero() {
					it.firstFailed = time.Now()
				}
				time.Sleep(d.retryIn) //nolint:forbidigo // the bubble's clock
			}
			if took := time.Since(began); d.fate != heldFate || it.attempts != 2 || took > inlineWindow {
				t.Errorf("%s behind try %d and %v, want held behind the third within %v", d.fate, it.attempts+1, took, inlineWindow)
			}
		}
	})
}
