package outboxtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/outbox"
)

// History notes what writers did, in the order in which it can be seen from outside, and judges what arrived. It knows
// nothing of sequence numbers, snapshots or relays. The zero value is ready; its methods may be called at once by many.
//
// The order that it demands is the one that a user can prove: if the commit of one message had returned before the Write
// of another one with the same topic and key did, then it must arrive first.
type History struct {
	mu       sync.Mutex
	now      int
	messages map[uuid.UUID]*life
}

// life is one message's times, counted in calls.
type life struct {
	lane               lane
	written, committed int
	unknown            bool
}

type lane struct{ topic, key string }

// Written notes messages whose Write has just returned. Their ids must be set.
func (h *History) Written(msgs ...outbox.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.messages == nil {
		h.messages = map[uuid.UUID]*life{}
	}
	h.now++
	for _, m := range msgs {
		h.messages[m.ID] = &life{lane: lane{m.Topic, m.Key}, written: h.now}
	}
}

// Committed notes messages whose transaction's commit has just returned without an error.
func (h *History) Committed(msgs ...outbox.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now++
	for _, m := range msgs {
		h.messages[m.ID].committed = h.now
	}
}

// Unknown notes messages whose commit has failed: they may arrive or not.
func (h *History) Unknown(msgs ...outbox.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range msgs {
		h.messages[m.ID].unknown = true
	}
}

// CommittedCount is how many messages must arrive.
func (h *History) CommittedCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	count := 0
	for _, l := range h.messages {
		if l.committed > 0 {
			count++
		}
	}
	return count
}

// Verdict is what a [History] finds wrong with what arrived.
type Verdict struct {
	// Lost were committed and did not arrive.
	Lost []uuid.UUID
	// Invented arrived and were never committed.
	Invented []uuid.UUID
	// Disordered arrived first after a later message of their key had.
	Disordered []uuid.UUID
	// Duplicates is how often a message arrived again. At least once is the promise, so they are no mistake.
	Duplicates int
}

// Err returns nil if nothing is wrong but duplicates.
func (v Verdict) Err() error {
	var parts []string
	for _, part := range []struct {
		what string
		ids  []uuid.UUID
	}{{"lost", v.Lost}, {"invented", v.Invented}, {"out of order", v.Disordered}} {
		if len(part.ids) > 0 {
			parts = append(parts, fmt.Sprintf("%d %s, first %s", len(part.ids), part.what, part.ids[0]))
		}
	}
	if parts == nil {
		return nil
	}
	return fmt.Errorf("history: %s", strings.Join(parts, "; "))
}

// Judge compares what was committed with what arrived, in the order of arrival. Call it when nothing more can arrive.
func (h *History) Judge(arrived []outbox.Record) Verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	var v Verdict
	seen := map[uuid.UUID]bool{}
	latest := map[lane]int{} // when the latest Write of what arrived so far had returned
	for _, record := range arrived {
		if seen[record.ID] {
			v.Duplicates++
			continue
		}
		seen[record.ID] = true
		l := h.messages[record.ID]
		if l == nil || l.committed == 0 && !l.unknown {
			v.Invented = append(v.Invented, record.ID)
			continue
		}
		if l.committed > 0 && l.committed < latest[l.lane] {
			v.Disordered = append(v.Disordered, record.ID)
		}
		latest[l.lane] = max(latest[l.lane], l.written)
	}
	for id, l := range h.messages {
		if l.committed > 0 && !seen[id] {
			v.Lost = append(v.Lost, id)
		}
	}
	slices.SortFunc(v.Lost, func(a, b uuid.UUID) int { return strings.Compare(a.String(), b.String()) })
	return v
}
