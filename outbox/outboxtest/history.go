package outboxtest

import (
	"cmp"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/outbox"
)

// History notes what writers did, in the order in which it can be seen from outside, and judges what arrived. The zero
// value is ready; its methods may be called at once by many.
//
// The order that it demands is the one that a user can prove: of two messages with the same topic and key, the one whose
// commit had returned before the Write of the other did must arrive first, and messages of one Write must arrive as they
// were listed. That is the real-time order of linearizability (Herlihy and Wing, 1990), with a message's life from its
// Write to its commit as the operation.
type History struct {
	mu       sync.Mutex
	calls    int
	messages map[uuid.UUID]*life
}

// life is what writers have noted of one message, in calls since the history began.
type life struct {
	id                 uuid.UUID
	lane               lane
	written, committed int
	nth                int // of the messages of its Write
	unknown            bool
}

type lane struct{ topic, key string }

// Written notes the messages of a Write that has just returned. Call it before their transaction ends, in whatever way. Their
// ids must be set.
func (h *History) Written(msgs ...outbox.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.messages == nil {
		h.messages = map[uuid.UUID]*life{}
	}
	h.calls++
	for i, m := range msgs {
		h.messages[m.ID] = &life{id: m.ID, lane: lane{m.Topic, m.Key}, written: h.calls, nth: i}
	}
}

// Committed notes messages whose transaction's commit has just returned without an error. They must have been Written.
func (h *History) Committed(msgs ...outbox.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	for _, m := range msgs {
		h.messages[m.ID].committed = h.calls
	}
}

// Unknown notes messages whose commit has failed in a way that leaves open what came of it, such as a lost connection:
// they may arrive or not. Of one that was certainly rolled back note nothing: it must not arrive.
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

// Complete reports whether every committed message is among arrived.
func (h *History) Complete(arrived []outbox.Record) bool {
	seen := make(map[uuid.UUID]bool, len(arrived))
	for i := range arrived {
		seen[arrived[i].ID] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, l := range h.messages {
		if l.committed > 0 && !seen[id] {
			return false
		}
	}
	return true
}

// Judge compares what was committed with what arrived, in the order of arrival. Call it when nothing more can arrive. Of
// a record it reads the ID; topic and key are those that were Written.
func (h *History) Judge(arrived []outbox.Record) Verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	var (
		v      Verdict
		places = map[uuid.UUID][]int{}
		order  = order{map[lane]*life{}, map[write]*life{}}
	)
	for place := range arrived {
		places[arrived[place].ID] = append(places[arrived[place].ID], place)
	}
	for place := range arrived {
		id := arrived[place].ID
		if places[id][0] != place {
			v.Duplicates++
			continue
		}
		l := h.messages[id]
		if l == nil {
			l = &life{id: id, lane: lane{arrived[place].Topic, arrived[place].Key}}
		}
		found := l.finding(places)
		if len(found.Arrived) > 1 {
			v.Duplicated = append(v.Duplicated, found)
		}
		if l.committed == 0 && !l.unknown {
			v.Invented = append(v.Invented, found)
			continue
		}
		if ahead := order.follows(l); ahead != nil {
			behind := ahead.finding(places)
			found.Behind = &behind
			v.Disordered = append(v.Disordered, found)
		}
	}
	for id, l := range h.messages {
		if l.committed > 0 && places[id] == nil {
			v.Lost = append(v.Lost, l.finding(places))
		}
	}
	slices.SortFunc(v.Lost, func(a, b Finding) int { return cmp.Compare(a.Committed, b.Committed) })
	return v
}

func (l *life) finding(places map[uuid.UUID][]int) Finding {
	return Finding{
		ID: l.id, Topic: l.lane.topic, Key: l.lane.key, Written: l.written, Committed: l.committed, Arrived: places[l.id],
	}
}

// order remembers of what has arrived the messages that show best that an earlier one comes too late.
type order struct {
	latest map[lane]*life  // the one whose Write returned last
	last   map[write]*life // the one that was listed last
}

// write is the messages of one Write that have one key.
type write struct {
	lane lane
	call int
}

// follows notes that l has arrived and returns a message that should not have come before it, or nil.
func (o *order) follows(l *life) (ahead *life) {
	of := write{l.lane, l.written}
	latest, last := o.latest[l.lane], o.last[of]
	switch {
	case last != nil && l.nth < last.nth:
		ahead = last
	case latest != nil && l.committed > 0 && l.committed < latest.written:
		ahead = latest
	}
	if last == nil || last.nth < l.nth {
		o.last[of] = l
	}
	if latest == nil || latest.written < l.written {
		o.latest[l.lane] = l
	}
	return ahead
}
