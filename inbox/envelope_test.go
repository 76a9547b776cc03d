package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

func accept(context.Context, pgx.Tx, Message) error { return nil }

func FuzzDecodeNeverPanicsAndAlwaysGivesAStorableMessage(f *testing.F) {
	r, err := newRouter([]Route{{Topic: "orders", Type: "order.placed.v1", Handle: accept}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("u1"), []byte(`{"a":1}`), "0190163d-8694-739b-aea5-966c26f8ad91", "order.placed.v1", "application/json", int64(0))
	f.Add([]byte{0xff, 0}, []byte(nil), "", "order.placed.v2", "", int64(-1))
	f.Add([]byte(nil), []byte("\xff"), "{0190163d-8694-739b-aea5-966c26f8ad91}", "", "text/plain", int64(1)<<62)
	f.Fuzz(func(t *testing.T, key, payload []byte, id, typ, contentType string, ms int64) {
		rec := &kgo.Record{Topic: "orders", Key: key, Value: payload, Timestamp: time.UnixMilli(ms), Headers: []kgo.RecordHeader{
			{Key: "ce_id", Value: []byte(id)}, {Key: "ce_type", Value: []byte(typ)}, {Key: "content-type", Value: []byte(contentType)},
		}}
		checkDecoded(t, decoder{routes: r, maxPayload: 1 << 10, maxHeaders: 10}, rec)
		checkDecoded(t, decoder{routes: r, maxPayload: 1 << 10, maxHeaders: 10, anyID: true}, rec)
	})
}

func checkDecoded(t *testing.T, d decoder, rec *kgo.Record) {
	t.Helper()
	it := d.decode(rec, time.Now())
	again := d.decode(rec, time.Now())
	if it == nil {
		return
	}
	if it.dedupID != again.dedupID || it.key != again.key {
		t.Fatalf("decoded twice: id %s and %s, key %q and %q", it.dedupID, again.dedupID, it.key, again.key)
	}
	if !storable(it.key) || !storable(text(it.msg.Type)) {
		t.Fatalf("key %q or type %q cannot be stored", it.key, text(it.msg.Type))
	}
	if slot := slotOf(it.dedupID); slot < 0 || slot > 31 {
		t.Fatalf("slot of %s = %d", it.dedupID, slot)
	}
	if d.anyID && it.expired {
		t.Fatalf("id %s is too old, though any will do", it.dedupID)
	}
	if it.verdict == nil && (it.msg.ID != it.dedupID || it.route.Handle == nil || len(it.msg.Payload) == 0) {
		t.Fatalf("accepted %+v", it.msg)
	}
	stored, err := json.Marshal(headerList(it.msg.Headers))
	if err != nil {
		t.Fatal(err)
	}
	var back headerList
	if err := json.Unmarshal(stored, &back); err != nil || len(back) != len(it.msg.Headers) {
		t.Fatalf("headers %s read back: %v, %v", stored, back, err)
	}
	for i, h := range back {
		if !bytes.Equal(h.Value, it.msg.Headers[i].Value) {
			t.Fatalf("header %d = %q, want %q", i, h.Value, it.msg.Headers[i].Value)
		}
	}
}

func TestNewConsumerReportsEveryMistakeAtOnce(t *testing.T) {
	_, err := NewConsumer(nil, "", []Route{
		{Topic: "orders"},
		{Topic: "orders", Type: "a.v1"},
		{Topic: "orders", Type: "b.v1", Handle: accept},
		{Topic: "orders", Type: "b.v1", Handle: accept},
	}, Options{BatchSize: 501})
	if err == nil {
		t.Fatal("NewConsumer() = nil error")
	}
	for _, want := range []string{"pool is nil", "group is empty", "batch size 501", "topic or type is empty", "exactly one of", "given twice"} {
		if !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("NewConsumer() = %v, want it to say %q", err, want)
		}
	}
}

func TestVersionIsTheSuffixOfAType(t *testing.T) {
	for _, tt := range []struct {
		typ, name, version string
		ok                 bool
	}{
		{"order.placed.v1", "order.placed", "v1", true},
		{"order.placed.v12", "order.placed", "v12", true},
		{"order.placed", "order.placed", "", false},
		{"order.placed.v", "order.placed.v", "", false},
		{"order.placed.vip", "order.placed.vip", "", false},
		{".v1", ".v1", "", false},
	} {
		name, version, ok := splitVersion(tt.typ)
		if name != tt.name || version != tt.version || ok != tt.ok {
			t.Errorf("splitVersion(%q) = %q, %q, %v, want %q, %q, %v", tt.typ, name, version, ok, tt.name, tt.version, tt.ok)
		}
	}
}
