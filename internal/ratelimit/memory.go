package ratelimit

import (
	"sync"
	"time"
)

// sweepAt is the number of remembered keys at which those that are idle are forgotten.
const sweepAt = 10_000

// memory is GCRA for one process. Per key it keeps one time: when the key's past requests will have been paid for at the
// permitted rate ("theoretical arrival time"). A request moves it on by one interval, and is refused if that would put it
// more than a burst ahead of now.
type memory struct {
	interval time.Duration // between requests at the permitted rate
	ahead    time.Duration // a burst

	mu      sync.Mutex
	paid    map[string]time.Time
	sweepAt int
}

func newMemory(perSecond, burst int) *memory {
	interval := time.Second / time.Duration(perSecond)
	return &memory{
		interval: interval, ahead: interval * time.Duration(burst),
		paid: map[string]time.Time{}, sweepAt: sweepAt,
	}
}

func (m *memory) allow(key string, now time.Time) Decision {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.paid[key]
	if next.Before(now) {
		next = now
	}
	next = next.Add(m.interval)
	if wait := next.Sub(now) - m.ahead; wait > 0 {
		return Decision{RetryAfter: wait, Local: true}
	}
	m.paid[key] = next
	if len(m.paid) >= m.sweepAt {
		m.sweep(now)
	}
	return Decision{Allowed: true, Local: true}
}

// sweep forgets the keys whose requests are paid for: to remember them changes no decision.
func (m *memory) sweep(now time.Time) {
	for key, next := range m.paid {
		if next.Before(now) {
			delete(m.paid, key)
		}
	}
	// Keys that are all busy would otherwise be swept at every request.
	m.sweepAt = max(sweepAt, 2*len(m.paid))
}
