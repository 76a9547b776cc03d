package outboxtest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// Verdict is what a [History] finds in what arrived.
type Verdict struct {
	// Lost were committed and did not arrive; in the order of their commits.
	Lost []Finding
	// Invented arrived and were never committed; in the order of their arrival, as the following are.
	Invented []Finding
	// Disordered arrived first after a later message of their key had.
	Disordered []Finding
	// Duplicated arrived more than once. At least once is the promise, so they are no mistake.
	Duplicated []Finding
	// Duplicates is how many records were not their message's first.
	Duplicates int
}

// Finding is one message of a [Verdict], with the events that show what is the matter with it.
type Finding struct {
	ID         uuid.UUID
	Topic, Key string
	// Written and Committed say at which call of the history they were noted; 0 if they were not.
	Written, Committed int
	// Arrived are the places of its records among those judged; the first record has place 0.
	Arrived []int
	// Behind is, for a message out of order, the later one of its key that arrived before it.
	Behind *Finding
}

// String says which message it is and what was seen of it.
func (f Finding) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s of %s/%s:", f.ID, f.Topic, f.Key)
	switch {
	case f.Written == 0:
		s.WriteString(" not written,")
	case f.Committed == 0:
		fmt.Fprintf(&s, " written at %d, not committed,", f.Written)
	default:
		fmt.Fprintf(&s, " written at %d, committed at %d,", f.Written, f.Committed)
	}
	if f.Arrived == nil {
		s.WriteString(" never arrived")
	} else {
		fmt.Fprintf(&s, " arrived at %v", f.Arrived)
	}
	if f.Behind != nil {
		fmt.Fprintf(&s, ", behind %v", *f.Behind)
	}
	return s.String()
}

// Err returns nil if nothing is wrong but duplicates. The error counts what is wrong and shows the first of each kind.
func (v Verdict) Err() error {
	const shown = 3
	var counts, lines []string
	for _, part := range []struct {
		what string
		of   []Finding
	}{{"lost", v.Lost}, {"invented", v.Invented}, {"out of order", v.Disordered}} {
		if len(part.of) == 0 {
			continue
		}
		counts = append(counts, fmt.Sprintf("%d %s", len(part.of), part.what))
		for _, f := range part.of[:min(shown, len(part.of))] {
			lines = append(lines, fmt.Sprintf("\n%s: %v", part.what, f))
		}
	}
	if counts == nil {
		return nil
	}
	return errors.New("history: " + strings.Join(counts, ", ") + strings.Join(lines, ""))
}
