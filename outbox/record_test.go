package outbox

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.opentelemetry.io/otel/propagation"
)

// Whatever Write accepts must come out of the relay as it went in, in a record that is not larger than Write thought,
// which in turn is not larger than the relay thinks that it is on the wire.
func FuzzMessage(f *testing.F) {
	f.Add("orders", "u-7", "order.placed.v1", "o-1", "application/json", "tenant", "a \"quoted\" one", []byte(`{"n":1}`))
	f.Add("a.b_C-9", "\u2028\x7f<>&", "t", "", "", "x", "\u2028\x7f<>&", []byte{})
	f.Add("orders", "a", "t", "s", "text/plain", "ce_id", "posing", []byte{0xff})
	f.Add("orders", "a", "t", "s", "text/plain", "Content-Type", "posing", []byte{0})
	f.Add("orders", "a\x00", "t", "\xff", "c", "traceparent", "its own", []byte("x"))
	f.Add(strings.Repeat("t", 249), strings.Repeat("k", 1024), "t", "\U0010ffff", "c", "~", "\t\n", bytes.Repeat([]byte("p"), 300))
	f.Fuzz(func(t *testing.T, topic, key, kind, subject, contentType, name, value string, payload []byte) {
		m := Message{
			Topic: topic, Key: key, Type: kind, Subject: subject, ContentType: contentType,
			Headers: map[string]string{name: value}, Payload: payload,
		}
		if len(payload) == 0 {
			m.Payload = nil // in Kafka that would be a tombstone
		}
		if m.check(DefaultMaxBytes) != nil {
			return // not what Write accepts
		}
		encoded, err := (Writer{}).encode(context.Background(), []Message{m})
		if err != nil {
			t.Fatal(err)
		}
		r := row{
			seq: 7, id: uuid.MustParse(encoded.ids[0]), topic: encoded.topics[0], key: encoded.keys[0], kind: encoded.types[0],
			contentType: encoded.contentTypes[0], headers: []byte(encoded.headers[0]), payload: encoded.payloads[0],
			createdAt: time.Now(),
		}
		record, err := r.record([]byte("/orders"))
		if err != nil {
			t.Fatal(err)
		}
		if record.Topic != topic || record.Key != key || !bytes.Equal(record.Value, payload) || record.Value == nil {
			t.Fatalf("record %+v, want topic %q, key %q, value %q", record, topic, key, payload)
		}
		got := map[string]string{}
		for _, h := range record.Headers {
			if _, twice := got[h.Key]; twice {
				t.Fatalf("header %q is there twice", h.Key)
			}
			got[h.Key] = string(h.Value)
		}
		want := map[string]string{
			headerSpecVersion: "1.0", headerID: r.id.String(), headerType: kind, headerSource: "/orders", headerSeq: "7",
			headerTime: r.createdAt.UTC().Format(time.RFC3339Nano), headerContentType: cmp.Or(contentType, "application/json"),
			name: value,
		}
		if subject != "" {
			want[headerSubject] = subject
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("headers (-want +got):\n%s", diff)
		}
		if wire := wireBytes(&record); wire > record.bytes() || record.bytes() > m.recordBytes() {
			t.Fatalf("record takes %d bytes, the relay counted %d, Write %d", wire, record.bytes(), m.recordBytes())
		}
	})
}

// wireBytes is what r takes in a batch.
func wireBytes(r *Record) int {
	wire := kmsg.Record{TimestampDelta64: math.MaxInt32, OffsetDelta: math.MaxInt32, Key: []byte(r.Key), Value: r.Value}
	for _, h := range r.Headers {
		wire.Headers = append(wire.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
	}
	length := len(wire.AppendTo(nil)) // with Length 0, which takes a byte
	wire.Length = int32(length - 1)
	return len(wire.AppendTo(nil))
}

// Whoever may insert can write headers without Write. One that the relay could not read would stop it for everybody.
func FuzzStoredHeaders(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"a": "b", "B": "\u20ac"}`))
	f.Add([]byte(`{"n": 1, "null": null, "list": [1, {"x": "y"}], "yes": true, "ce_id": "posing"}`))
	f.Add([]byte(`{"a": 1e400}`))
	f.Fuzz(func(t *testing.T, stored []byte) {
		var object map[string]any
		decoder := json.NewDecoder(bytes.NewReader(stored))
		decoder.UseNumber()
		if !json.Valid(stored) || decoder.Decode(&object) != nil || object == nil {
			return // not what the column takes
		}
		headers, err := ownHeaders(stored)
		if err != nil {
			t.Fatal(err)
		}
		if len(headers) != len(object) {
			t.Fatalf("%d headers of %s, want %d", len(headers), stored, len(object))
		}
		for _, h := range headers {
			if text, is := object[h.Key].(string); is && text != string(h.Value) {
				t.Fatalf("header %q is %q, want %q", h.Key, h.Value, text)
			}
		}
		sorted := slices.IsSortedFunc(headers, func(a, b kgo.RecordHeader) int { return strings.Compare(a.Key, b.Key) })
		if !sorted {
			t.Fatalf("headers %v are not sorted", headers)
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
