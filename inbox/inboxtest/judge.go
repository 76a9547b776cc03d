package inboxtest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/inbox"
)

// Effect is the trace of one message in the tables of a service.
type Effect struct {
	ID         uuid.UUID // of the message: [inbox.Message.ID]
	Topic, Key string    // of the message
}

// Verdict is what [Judge] finds.
type Verdict struct {
	Lost       []Effect // messages without an effect, in the order of their publication
	Invented   []Effect // effects of no message; in their own order, as the following are
	Repeated   []Effect // effects that their message had before
	Disordered []Effect // effects behind one of a later message of the same topic and key
}

// Judge compares effects, in the order in which they happened, with the messages that were sent, in the order in which they
// were published first. Order matters within a topic's key only.
func Judge(sent []inbox.Message, effects []Effect) Verdict {
	type lane struct{ topic, key string }
	place := make(map[uuid.UUID]int, len(sent))
	for i, m := range sent {
		place[m.ID] = i
	}
	var v Verdict
	seen := map[uuid.UUID]bool{}
	last := map[lane]int{}
	for _, e := range effects {
		at, known := place[e.ID]
		switch {
		case !known || sent[at].Topic != e.Topic || sent[at].Key != e.Key:
			v.Invented = append(v.Invented, e)
			continue
		case seen[e.ID]:
			v.Repeated = append(v.Repeated, e)
			continue
		}
		seen[e.ID] = true
		in := lane{e.Topic, e.Key}
		if before, ok := last[in]; ok && before > at {
			v.Disordered = append(v.Disordered, e)
			continue
		}
		last[in] = at
	}
	for _, m := range sent {
		if !seen[m.ID] {
			v.Lost = append(v.Lost, Effect{m.ID, m.Topic, m.Key})
		}
	}
	return v
}

// Err returns nil if nothing is wrong. The error counts what is, and names the first of each kind.
func (v Verdict) Err() error {
	var found []string
	for _, part := range []struct {
		what string
		of   []Effect
	}{{"lost", v.Lost}, {"invented", v.Invented}, {"repeated", v.Repeated}, {"out of order", v.Disordered}} {
		if len(part.of) > 0 {
			e := part.of[0]
			found = append(found, fmt.Sprintf("%d %s, the first is %s of %s/%s", len(part.of), part.what, e.ID, e.Topic, e.Key))
		}
	}
	if found == nil {
		return nil
	}
	return errors.New("effects: " + strings.Join(found, "; "))
}
