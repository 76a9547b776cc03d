package outbox

import "time"

// unknownTopicAfter is how long a topic must have been unknown before its records are refused. Brokers that start, as in
// a rolling restart, do not know a topic for some seconds; a topic that is really missing is worth that delay, once. It
// is half of the default [RelayOptions.MaxAge], so that the relay stays healthy meanwhile.
const unknownTopicAfter = 15 * time.Second

// absences tell a topic that does not exist from one that is gone for a moment.
type absences struct {
	limit  time.Duration
	topics map[string]absence
}

type absence struct {
	first, last time.Time // when the topic was found unknown
	lasted      bool
}

// unknown notes that topic is unknown now, and reports whether that has lasted. Once it has, it does until the topic is
// found; otherwise it begins anew after a pause in which nobody looked.
func (a *absences) unknown(topic string, now time.Time) bool {
	at, noted := a.topics[topic]
	if !noted || !at.lasted && now.Sub(at.last) > a.limit {
		at.first = now
	}
	at.last = now
	at.lasted = at.lasted || now.Sub(at.first) >= a.limit
	a.topics[topic] = at
	return at.lasted
}

func (a *absences) found(topic string) { delete(a.topics, topic) }
