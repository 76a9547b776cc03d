package inbox

import (
	"hash/maphash"
	"sync"
	"time"
)

// health counts what is needed to tell a poison message from an outage. It knows this process only, which errs on the
// safe side: evidence that another process saw does not count.
type health struct {
	mu        sync.Mutex
	seed      maphash.Seed
	minute    time.Time // start of the current window
	holds     int
	keys      map[uint64]struct{}
	lastKeys  int
	succeeded map[topicType]int64 // since the process started
	window    map[topicType]*verdicts
}

// verdicts are the outcomes of one type within the current minute.
type verdicts struct{ ok, permanent int }

const (
	maxHoldsPerMinute     = 100 // and 10 % of the active keys, whichever is more
	minPermanentPerMinute = 10  // fewer never mean a bad deploy
)

func newHealth() *health {
	return &health{
		seed: maphash.MakeSeed(),
		keys: map[uint64]struct{}{}, succeeded: map[topicType]int64{}, window: map[topicType]*verdicts{},
	}
}

func (h *health) roll(now time.Time) {
	if now.Sub(h.minute) < time.Minute {
		return
	}
	h.lastKeys = len(h.keys)
	h.minute, h.holds = now, 0
	clear(h.keys)
	clear(h.window)
}

func (h *health) verdicts(at topicType) *verdicts {
	v := h.window[at]
	if v == nil {
		v = &verdicts{}
		h.window[at] = v
	}
	return v
}

// success notes one applied message of a key.
func (h *health) success(m *Message, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	at := topicType{m.Topic, m.Type}
	h.succeeded[at]++
	h.verdicts(at).ok++
	if len(h.keys) < 1<<20 {
		h.keys[maphash.String(h.seed, m.Key)] = struct{}{}
	}
}

// mayHold reports whether another key may be held beside pending ones: so many new holds in a minute are an outage, not so
// many poison messages.
func (h *health) mayHold(pending int, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	return h.holds+pending < max(maxHoldsPerMinute, max(len(h.keys), h.lastKeys)/10)
}

// held notes a hold that is committed.
func (h *health) held(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	h.holds++
}

// mayDie reports whether to believe a permanent failure, beside pending ones: when a fifth of a type fails permanently
// within a minute, the handler is broken, not the messages.
func (h *health) mayDie(m *Message, pending int, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	v := h.verdicts(topicType{m.Topic, m.Type})
	n := v.permanent + pending + 1
	return n <= minPermanentPerMinute || n*5 <= v.ok+n
}

// permanent notes a permanent failure that is committed, whether it was believed or not.
func (h *health) permanent(m *Message, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	h.verdicts(topicType{m.Topic, m.Type}).permanent++
}

// successes returns how many messages of a type succeeded so far. The messages of a held key are never among them.
func (h *health) successes(topic, typ string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.succeeded[topicType{topic, typ}]
}

// activeKeys returns the number of keys that succeeded in this minute or the one before.
func (h *health) activeKeys() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(len(h.keys), h.lastKeys)
}
