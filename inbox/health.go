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

// mayHold counts a new hold, or refuses it: so many new holds in a minute are an outage, not so many poison messages.
func (h *health) mayHold(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	if h.holds >= max(maxHoldsPerMinute, max(len(h.keys), h.lastKeys)/10) {
		return false
	}
	h.holds++
	return true
}

// mayDie notes a permanent failure and reports whether to believe it: when a fifth of a type fails permanently within
// a minute, the handler is broken, not the messages.
func (h *health) mayDie(m *Message, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roll(now)
	v := h.verdicts(topicType{m.Topic, m.Type})
	v.permanent++
	return v.permanent <= minPermanentPerMinute || v.permanent*5 <= v.ok+v.permanent
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
