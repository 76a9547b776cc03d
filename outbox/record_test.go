package outbox

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/propagation"
)

// Whatever Write accepts must come out of the relay as it went in, in a record that is not larger than Write thought.
func FuzzHeaders(f *testing.F) {
	f.Add("tenant", "a \"quoted\" one", "o-1", []byte(`{"n":1}`))
	f.Add("x", "\u2028\x7f<>&", "", []byte{})
	f.Add("ce_id", "posing", "s", []byte{0xff})
	f.Fuzz(func(t *testing.T, name, value, subject string, payload []byte) {
		m := Message{
			Topic: "orders", Key: "a", Type: "t", Subject: subject, Headers: map[string]string{name: value}, Payload: payload,
		}
		if m.check(DefaultMaxBytes) != nil {
			return // not what Write accepts
		}
		stored, err := storedHeaders(&m, propagation.MapCarrier{})
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid([]byte(stored)) {
			t.Fatalf("stored headers are no JSON: %s", stored)
		}
		r := row{
			seq: 7, id: uuid.New(), topic: m.Topic, key: m.Key, kind: m.Type, contentType: "application/json",
			headers: []byte(stored), payload: payload, createdAt: time.Now(),
		}
		record, err := r.record([]byte("/orders"))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, h := range record.Headers {
			if _, twice := got[h.Key]; twice {
				t.Fatalf("header %q is there twice", h.Key)
			}
			got[h.Key] = string(h.Value)
		}
		if got[name] != value || got[headerSubject] != subject || got[headerID] != r.id.String() || got[headerSeq] != "7" {
			t.Fatalf("headers are %v, want %q=%q and subject %q", got, name, value, subject)
		}
		if record.bytes() > m.recordBytes() {
			t.Fatalf("record takes %d bytes, Write counted %d", record.bytes(), m.recordBytes())
		}
	})
}

func TestRecordOfALongSourceStillFitsWhatWriteCounted(t *testing.T) {
	m := Message{Topic: "orders", Key: "a", Type: "order.placed.v1", Subject: "s"}
	stored, err := storedHeaders(&m, propagation.MapCarrier{"traceparent": strings.Repeat("0", 55)})
	if err != nil {
		t.Fatal(err)
	}
	r := row{
		id: uuid.New(), key: m.Key, kind: m.Type, contentType: "application/json",
		headers: []byte(stored), createdAt: time.Now(),
	}
	record, err := r.record([]byte(strings.Repeat("x", 120)))
	if err != nil {
		t.Fatal(err)
	}
	if got, counted := record.bytes(), m.recordBytes(); got > counted {
		t.Errorf("record takes %d bytes, Write counted %d", got, counted)
	}
}

func TestOrderCheckNoticesALowerSeqOfItsKeyOnly(t *testing.T) {
	var check orderCheck
	for _, step := range []struct {
		key  string
		seq  int64
		want bool
		why  string
	}{
		{"a", 5, true, "the first of its key"},
		{"b", 2, true, "another key"},
		{"a", 6, true, "a later one"},
		{"a", 4, false, "an earlier one after a later one"},
		{"a", 7, true, "the next one"},
	} {
		if got := check.follows(&Record{Topic: "t", Key: step.key, Seq: step.seq}); got != step.want {
			t.Errorf("follows(%s %d) = %v, want %v: %s", step.key, step.seq, got, step.want, step.why)
		}
	}
}
