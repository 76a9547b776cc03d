package outboxtest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// named returns a message whose id is its name.
func named(name, key string) outbox.Message {
	var id uuid.UUID
	copy(id[:], name)
	return outbox.Message{ID: id, Topic: "orders", Key: key}
}

func arrival(names ...string) []outbox.Record {
	var arrived []outbox.Record
	for _, name := range names {
		arrived = append(arrived, outbox.Record{ID: named(name, "").ID})
	}
	return arrived
}

func TestHistoryJudgesByWhatWritersSaw(t *testing.T) {
	t.Parallel()
	a, b, c, d := named("a", "key"), named("b", "key"), named("c", "other key"), named("d", "key")
	inTurn := func(h *outboxtest.History) { // each committed before the next was written
		for _, m := range []outbox.Message{a, b, c} {
			h.Written(m)
			h.Committed(m)
		}
	}
	for _, test := range []struct {
		name    string
		did     func(h *outboxtest.History)
		arrived []outbox.Record
		want    string // the findings
		err     string
	}{
		{"all arrived in order", inTurn, arrival("a", "b", "c"), "", "<nil>"},
		{"another key may overtake", inTurn, arrival("c", "a", "b"), "", "<nil>"},
		{"one is missing", inTurn, arrival("b", "c"), "lost a", "history: 1 lost"},
		{"a later one of its key came first", inTurn, arrival("b", "a", "c"), "disordered a behind b", "history: 1 out of order"},
		{"a repetition is no mistake, wherever it comes", inTurn, arrival("a", "b", "a", "c", "a"), "duplicated a[0 2 4]", "<nil>"},
		{"the first arrival is what counts for order", inTurn, arrival("b", "a", "b", "c"),
			"disordered a behind b duplicated b[0 2]", "history: 1 out of order"},
		{"nobody wrote it", func(*outboxtest.History) {}, arrival("x"), "invented x", "history: 1 invented"},
		{"it was rolled back", func(h *outboxtest.History) { h.Written(a) }, arrival("a"), "invented a", "history: 1 invented"},
		{"transactions that were open at once may arrive in any order", func(h *outboxtest.History) {
			h.Written(a)
			h.Written(b)
			h.Committed(a)
			h.Committed(b)
		}, arrival("b", "a"), "", "<nil>"},
		{"a commit of unknown outcome may have happened", func(h *outboxtest.History) {
			h.Written(a)
			h.Unknown(a)
		}, arrival("a"), "", "<nil>"},
		{"or not", func(h *outboxtest.History) {
			h.Written(a)
			h.Unknown(a)
		}, nil, "", "<nil>"},
		{"one of unknown outcome that arrived shows the order of others", func(h *outboxtest.History) {
			h.Written(a)
			h.Committed(a)
			h.Written(b)
			h.Unknown(b)
		}, arrival("b", "a"), "disordered a behind b", "history: 1 out of order"},
		{"messages of one Write arrive as they were listed", func(h *outboxtest.History) {
			h.Written(a, b)
			h.Committed(a, b)
		}, arrival("b", "a"), "disordered a behind b", "history: 1 out of order"},
		{"whatever comes between them", func(h *outboxtest.History) {
			h.Written(a, b)
			h.Written(d)
			h.Committed(d)
			h.Committed(a, b)
		}, arrival("b", "d", "a"), "disordered a behind b", "history: 1 out of order"},
		{"but not with another key", func(h *outboxtest.History) {
			h.Written(a, c)
			h.Committed(a, c)
		}, arrival("c", "a"), "", "<nil>"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var h outboxtest.History
			test.did(&h)
			verdict := h.Judge(test.arrived)
			if diff := cmp.Diff(test.want, describe(verdict)); diff != "" {
				t.Errorf("Judge (-want +got):\n%s", diff)
			}
			if got, _, _ := strings.Cut(fmt.Sprint(verdict.Err()), "\n"); got != test.err {
				t.Errorf("Err = %v, want %s", verdict.Err(), test.err)
			}
			if want := len(verdict.Lost) == 0; h.Complete(test.arrived) != want {
				t.Errorf("Complete = %v, want %v", !want, want)
			}
		})
	}
}

func describe(v outboxtest.Verdict) string {
	said := ""
	add := func(what string, found []outboxtest.Finding) {
		for _, f := range found {
			said += " " + what + " " + string(f.ID[:1])
			if f.Behind != nil {
				said += " behind " + string(f.Behind.ID[:1])
			}
			if what == "duplicated" {
				said += fmt.Sprint(f.Arrived)
			}
		}
	}
	add("lost", v.Lost)
	add("invented", v.Invented)
	add("disordered", v.Disordered)
	add("duplicated", v.Duplicated)
	if said != "" {
		return said[1:]
	}
	return ""
}
