package inbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/orderflow-dev/orderflow/inbox"
)

// idOf returns a UUIDv7 of a time.
func idOf(at time.Time) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	ms := at.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

func set(rec *kgo.Record, name, value string) *kgo.Record {
	for i, h := range rec.Headers {
		if h.Key == name {
			rec.Headers[i].Value = []byte(value)
			return rec
		}
	}
	rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	return rec
}

func drop(rec *kgo.Record, name string) *kgo.Record {
	for i, h := range rec.Headers {
		if h.Key == name {
			rec.Headers = append(rec.Headers[:i], rec.Headers[i+1:]...)
			break
		}
	}
	return rec
}

func payload(rec *kgo.Record, value []byte) *kgo.Record {
	rec.Value = value
	return rec
}

func manyHeaders(rec *kgo.Record) *kgo.Record {
	for i := range 10_000 {
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: fmt.Sprintf("h%d", i), Value: []byte("x")})
	}
	return rec
}

// longKey is a key that Postgres cannot make short enough for an index.
func longKey(n int) []byte {
	key := make([]byte, 0, n+1)
	for i := 0; len(key) < n; i++ {
		key = fmt.Appendf(key, "%x", sha256.Sum256([]byte{byte(i)}))
	}
	return key[:n]
}

// badInput is every row of "Bad Kafka input": what arrives under a key of its own, and its fate. Each is followed by a
// good message of the same key, which waits unless the first one was accepted or ignored. The last row of that list, a dead
// letter that fails again on its replay, is tried with every one that is dead; what 10,000 headers and big payloads cost in
// memory is measured in TestBulkyMessagesUseUpTheBudget.
var badInput = []struct {
	name  string
	bad   func(key string) []*kgo.Record // nothing: an aborted transaction, of which only a gap between offsets is left
	class string                         // "": accepted, or ignored
	state string
	want  []int // effects
	tries int   // at least, before it is parked
}{
	{"null payload", one(func(r *kgo.Record) *kgo.Record { return payload(r, nil) }), inbox.ClassUndecodable, inbox.StateDead, nil, 0},
	{"empty payload", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte{}) }), inbox.ClassUndecodable, inbox.StateDead, nil, 0},
	{"not JSON", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1`)) }), inbox.ClassUndecodable, inbox.StateDead, nil, 0},
	{"bad UTF-8", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte("{\"what\":\"\xff\"}")) }), inbox.ClassUndecodable, inbox.StateDead, nil, 0},
	{"no ce_id", one(func(r *kgo.Record) *kgo.Record { return drop(r, "ce_id") }), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"ce_id is no UUID", one(func(r *kgo.Record) *kgo.Record { return set(r, "ce_id", "17\x00") }), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"ce_id is a random UUID", one(func(r *kgo.Record) *kgo.Record { return set(r, "ce_id", uuid.NewString()) }), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"ce_id of 29 days ago", one(func(r *kgo.Record) *kgo.Record {
		return set(r, "ce_id", idOf(time.Now().Add(-29*24*time.Hour)).String())
	}), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"ce_id of the day after tomorrow", one(func(r *kgo.Record) *kgo.Record {
		return set(r, "ce_id", idOf(time.Now().Add(48*time.Hour)).String())
	}), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"no ce_type", one(func(r *kgo.Record) *kgo.Record { return drop(r, "ce_type") }), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"unknown extra field", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1,"new":true}`)) }), "", "", []int{1, 2}, 0},
	{"unknown type", one(func(r *kgo.Record) *kgo.Record { return set(r, "ce_type", "order.archived.v1") }), "", "", []int{2}, 0},
	{"newer major version", one(func(r *kgo.Record) *kgo.Record { return set(r, "ce_type", "order.placed.v2") }), inbox.ClassUnsupportedVersion, inbox.StateHeld, nil, 0},
	{"key is not the user", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1,"what":"mismatch"}`)) }), inbox.ClassKeyMismatch, inbox.StateDead, nil, 0},
	{"known id with another payload", func(key string) []*kgo.Record {
		first, second := record(key, 1, ""), record(key, 1, "again")
		second.Headers = first.Headers
		return []*kgo.Record{first, second}
	}, inbox.ClassIDConflict, inbox.StateDead, []int{1}, 0},
	{"unknown order", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1,"what":"unknown"}`)) }), "unknown_order", inbox.StateHeld, nil, 3},
	{"amount differs from order", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1,"what":"invalid"}`)) }), "business_invalid", inbox.StateDead, nil, 0},
	{"illegal transition", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1,"what":"illegal"}`)) }), "business_invalid", inbox.StateDead, nil, 0},
	{"offset gap", func(string) []*kgo.Record { return nil }, "", "", []int{2}, 0},
	{"over the size limit", one(func(r *kgo.Record) *kgo.Record {
		return payload(r, []byte(`{"what":"`+strings.Repeat("x", 5000)+`"}`))
	}), inbox.ClassTooLarge, inbox.StateDead, nil, 0},
	{"10,000 headers", one(manyHeaders), inbox.ClassTooLarge, inbox.StateDead, nil, 0},
	{"absurd ce_time", one(func(r *kgo.Record) *kgo.Record { return set(r, "ce_time", "the other day") }), "", "", []int{1, 2}, 0},
	{"absurd timestamp", one(func(r *kgo.Record) *kgo.Record { r.Timestamp = time.UnixMilli(math.MaxInt64 / 2); return r }), "", "", []int{1, 2}, 0},
	{"absurd timestamp of a message to park", one(func(r *kgo.Record) *kgo.Record {
		r.Timestamp = time.UnixMilli(math.MaxInt64 / 2)
		return drop(r, "ce_id")
	}), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"bad traceparent", one(func(r *kgo.Record) *kgo.Record { return set(r, "traceparent", "00-zz-1-1") }), "", "", []int{1, 2}, 0},
	{"handler panic", one(func(r *kgo.Record) *kgo.Record { return payload(r, []byte(`{"seq":1,"what":"panic"}`)) }), inbox.ClassHandlerPanic, inbox.StateHeld, nil, 0},
	{"header without a value", one(func(r *kgo.Record) *kgo.Record {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "x-null"}, kgo.RecordHeader{Key: "x-empty", Value: []byte{}})
		return drop(r, "ce_id")
	}), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"header that is no text", one(func(r *kgo.Record) *kgo.Record { return drop(set(r, "x-\xff", "\x00\xff"), "ce_id") }), inbox.ClassBadEnvelope, inbox.StateDead, nil, 0},
	{"handler swallows an error of its transaction", one(func(r *kgo.Record) *kgo.Record {
		return payload(r, []byte(`{"seq":1,"what":"swallow"}`))
	}), inbox.ClassTransient, inbox.StateHeld, nil, 0},
}

func one(spoil func(*kgo.Record) *kgo.Record) func(string) []*kgo.Record {
	return func(key string) []*kgo.Record { return []*kgo.Record{spoil(record(key, 1, ""))} }
}

// badHandler fails as the payload says.
func badHandler(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	switch what(m) {
	case "unknown":
		return inbox.WithClass("unknown_order", errors.New("no such order yet"))
	case "invalid":
		return inbox.PermanentAs("business_invalid", errors.New("amount differs from order"))
	case "illegal":
		return inbox.PermanentAs("business_invalid", errors.New("a shipped order cannot be cancelled"))
	case "panic":
		panic("boom")
	case "swallow":
		_, _ = tx.Exec(ctx, `SELECT 1/0`)
		return nil
	}
	return apply(ctx, tx, m)
}

func TestBadKafkaInputGetsItsFateAndStopsNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.MaxPayload = 4096
	opts.RetryMin, opts.RetryMax = time.Minute, time.Minute // a held message stays as it is
	reader := sdk.NewManualReader()
	opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("inbox")
	w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, Handle: badHandler, Check: func(m inbox.Message) error {
		if what(m) == "mismatch" {
			return errors.New("key is not the user of the payload")
		}
		return nil
	}}}, opts)

	sent := map[string]*kgo.Record{}
	var all []*kgo.Record
	parked := 0
	for i, tt := range badInput {
		key := fmt.Sprintf("k%d", i)
		records := tt.bad(key)
		if len(records) == 0 {
			w.abort(record(key, 1, ""))
		} else {
			sent[key] = records[len(records)-1]
		}
		all = append(all, append(records, record(key, 2, ""))...)
		if tt.class != "" {
			parked += 2
		}
	}
	w.produce(all...)
	w.wait("a fate for every message", func() bool { return len(w.parked(inbox.Filter{})) == parked && w.lag() == 0 })
	for i, tt := range badInput {
		key := fmt.Sprintf("k%d", i)
		t.Run(tt.name, func(t *testing.T) {
			ww := *w
			ww.T = t
			ww.wantEffects(key, tt.want...)
			got := ww.parked(inbox.Filter{Key: key})
			if tt.class == "" {
				if len(got) != 0 {
					t.Fatalf("parked = %+v, want nothing", got)
				}
				return
			}
			if len(got) != 2 || got[0].Class != tt.class || got[0].State != tt.state || got[1].State != inbox.StateWaiting {
				t.Fatalf("parked = %+v, want %s %s and one waiting behind it", got, tt.class, tt.state)
			}
			if got[0].Attempts < tt.tries {
				t.Errorf("parked after %d attempts, want at least %d", got[0].Attempts, tt.tries)
			}
			full, err := inbox.ShowParked(t.Context(), w.db.Pool, got[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			rec := sent[key]
			if !bytes.Equal(full.Payload, rec.Value) || (full.Payload == nil) != (rec.Value == nil) || len(full.Headers) != len(rec.Headers) {
				t.Errorf("parked payload %q with %d headers, want %q with %d", full.Payload, len(full.Headers), rec.Value, len(rec.Headers))
			}
			for i, h := range rec.Headers {
				if got := full.Headers[i].Value; !bytes.Equal(got, h.Value) || (got == nil) != (h.Value == nil) {
					t.Errorf("parked header %s = %#v, want %#v", h.Key, got, h.Value)
				}
			}
		})
	}
	if got := fates(t, reader)["ignored"]; got != 1 {
		t.Errorf("%d messages counted as ignored, want the one of an unknown type", got)
	}
	dead := w.parked(inbox.Filter{State: inbox.StateDead})
	if copies := w.count(`SELECT count(*) FROM outbox`); copies != len(dead) {
		t.Errorf("%d copies of %d dead letters", copies, len(dead))
	}

	// Replayed with nothing mended, each fails once more in the same way and rests.
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); n != len(dead) || err != nil {
		t.Fatalf("Replay() = %d, %v, want %d", n, err, len(dead))
	}
	w.wait("all dead again", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateDead})) == len(dead) })
	w.produce(record("later", 1, ""))
	w.wait("a later message", func() bool { return len(w.effects("later")) == 1 })
	for i, p := range w.parked(inbox.Filter{State: inbox.StateDead}) {
		if was := dead[i]; p.ID != was.ID || p.Class != was.Class || p.Attempts != was.Attempts+1 {
			t.Errorf("%s, class %s, after %d attempts was replayed and is %s, class %s, after %d", was.Key, was.Class, was.Attempts, p.Key, p.Class, p.Attempts)
		}
	}
	if n := w.count(`SELECT count(*) FROM inbox_holds WHERE state = 'dead' AND lease_token IS NULL`); n != len(dead) {
		t.Errorf("%d keys rest behind a dead letter, want %d", n, len(dead))
	}
}

// abort writes a record in a transaction and aborts it.
func (w *world) abort(rec *kgo.Record) {
	w.Helper()
	client := w.broker.Client(w.T, kgo.TransactionalID("aborter"))
	if err := client.BeginTransaction(); err != nil {
		w.Fatal(err)
	}
	if err := client.ProduceSync(w.Context(), rec).FirstErr(); err != nil {
		w.Fatal(err)
	}
	if err := client.EndTransaction(w.Context(), kgo.TryAbort); err != nil {
		w.Fatal(err)
	}
}

// fates returns how many messages were counted under each fate.
func fates(t *testing.T, reader *sdk.ManualReader) map[string]int64 {
	t.Helper()
	return counted(t, reader, "inbox.messages", "fate")
}

// counted returns what a counter has for each value of an attribute.
func counted(t *testing.T, reader *sdk.ManualReader, counter, by string) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == counter {
				for _, point := range sum.DataPoints {
					value, _ := point.Attributes.Value(attribute.Key(by))
					counts[value.AsString()] += point.Value
				}
			}
		}
	}
	return counts
}

func TestARecordOfAForgottenDayThatIsParkedIsNotParkedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.RetryMin, opts.RetryMax = time.Hour, time.Hour
	stop := w.start(apply, opts)
	good := record("u1", 1, "")
	conflict := payload(record("u2", 1, ""), []byte(`{"seq":9}`))
	conflict.Headers = good.Headers
	bad := []*kgo.Record{
		drop(record("u3", 1, ""), "ce_id"),
		set(record("u4", 1, ""), "ce_id", "42"),
		conflict,
	}
	for i, rec := range bad {
		rec.Timestamp = time.UnixMilli(int64(i) * 1000) // in 1970: its place's id is of a leaf that is emptied in turn
	}
	w.produce(good)
	w.wait("the effect", func() bool { return len(w.effects("u1")) == 1 })
	w.produce(bad...)
	w.wait("all parked", func() bool { return len(w.parked(inbox.Filter{})) == len(bad) && w.lag() == 0 })
	stop()

	if _, err := w.db.Pool.Exec(t.Context(), `DELETE FROM processed_messages WHERE state = 'parked'`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.adm.DeleteGroup(t.Context(), "test"); err != nil { // everything is delivered again
		t.Fatal(err)
	}
	w.start(apply, opts)
	w.wait("no lag", func() bool { return w.lag() == 0 })
	if n := len(w.parked(inbox.Filter{})); n != len(bad) {
		t.Errorf("%d parked, want %d: %s", n, len(bad), w.describeParked())
	}
	w.wantEffects("u1", 1)
}

func TestKeysThatAreNoTextOrTooLongAreKeptAsTheyAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := [][]byte{{0xff, 0x00, 'a'}, nil, []byte(`\x41`), longKey(4096), append(longKey(600), 0xff)}
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		var b body
		if err := json.Unmarshal(m.Payload, &b); err != nil {
			return err
		}
		if b.What == "poison" && m.Attempt == 1 {
			return inbox.RetryAfter(time.Hour, errors.New("park it"))
		}
		if !bytes.Equal([]byte(m.Key), keys[b.Seq]) {
			return inbox.Permanent(fmt.Errorf("key %q, want %q", m.Key, keys[b.Seq]))
		}
		_, err := tx.Exec(ctx, `INSERT INTO effects (key, id, seq) VALUES ('', $1::text::uuid, $2)`, m.ID.String(), b.Seq)
		return err
	}
	w.start(handle, w.options())
	for i, key := range keys {
		rec := record("", i, "poison")
		rec.Key = key
		w.produce(rec)
	}
	w.wait("all held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == len(keys) })
	if _, err := w.db.Pool.Exec(t.Context(), `UPDATE inbox_holds SET next_at = now()`); err != nil {
		t.Fatal(err)
	}
	w.wait("all effects", func() bool { return len(w.effects("")) == len(keys) })
}

func TestAbortedRecordsAndOffsetGapsAreTolerated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.options())
	client := w.broker.Client(t, kgo.TransactionalID("writer"))
	for i := range 4 {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), record("u1", i, "")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), kgo.TransactionEndTry(i%2 == 0)); err != nil {
			t.Fatal(err)
		}
	}
	w.produce(record("u1", 4, ""))
	w.wait("three effects", func() bool { return len(w.effects("u1")) == 3 })
	w.wantEffects("u1", 0, 2, 4)
	w.wait("no lag", func() bool { return w.lag() == 0 })
}

func TestNewerVersionIsHeldUntilADeployBringsItsRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.RetryMax = time.Hour
	stop := w.start(apply, opts)
	w.produce(record("u1", 1, ""), set(record("u1", 2, ""), "ce_type", "order.placed.v2"), record("u1", 3, ""))
	w.wait("two parked", func() bool { return len(w.parked(inbox.Filter{})) == 2 })
	stop()
	w.startRoutes([]inbox.Route{
		{Topic: topic, Type: placed, Handle: apply},
		{Topic: topic, Type: "order.placed.v2", Handle: apply},
	}, opts)
	w.wait("all effects", func() bool { return len(w.effects("u1")) == 3 })
	w.wantEffects("u1", 1, 2, 3)
}

func TestAVersionThatOnlyAnotherTopicHasARouteForStaysHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.startRoutes([]inbox.Route{
		{Topic: topic, Type: placed, Handle: parkFirst(apply)},
		{Topic: "other", Type: "order.placed.v2", Handle: apply},
	}, w.options())
	w.produce(set(record("newer", 1, ""), "ce_type", "order.placed.v2"), record("u1", 1, "park"), record("u2", 1, "park"))
	w.wait("three held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 3 })
	for _, key := range []string{"u1", "u2"} { // whoever takes one of these has passed over the newer one
		w.due("newer", key)
		w.wait(key, func() bool { return len(w.effects(key)) == 1 })
	}
	if p := w.parked(inbox.Filter{Key: "newer"}); len(p) != 1 || p[0].Attempts != 1 {
		t.Errorf("parked = %+v, want one that was not tried again", p)
	}
}
