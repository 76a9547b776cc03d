package inbox_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func (w *world) importParked(p inbox.Parked) error {
	return pgx.BeginFunc(w.Context(), w.db.Pool, func(tx pgx.Tx) error {
		return inbox.ImportParked(w.Context(), tx, p, "bob")
	})
}

// lose empties the inbox, as a restore of an older database does.
func (w *world) lose() {
	w.Helper()
	if _, err := w.db.Pool.Exec(w.Context(), `TRUNCATE parked_messages, inbox_holds, processed_messages, inbox_edits, inbox_audit`); err != nil {
		w.Fatal(err)
	}
}

func TestImportedMessagesTakeTheirPlaceUnderTheLockProtocol(t *testing.T) {
	t.Parallel()
	onEachTable(t, testImportedMessagesTakeTheirPlaceUnderTheLockProtocol)
}

func testImportedMessagesTakeTheirPlaceUnderTheLockProtocol(w *world) {
	t := w.T
	w.start(apply, w.options())
	broken, behind := record("u1", 2, ""), record("u1", 3, "")
	broken.Value = []byte(`{"seq":`)
	w.produce(record("u1", 1, ""), broken, behind)
	w.edit(w.onlyDead(), `{"seq":2}`)
	w.wait("one behind it", func() bool { return len(w.parked(inbox.Filter{})) == 2 })
	var exported []inbox.Parked
	for _, p := range w.parked(inbox.Filter{}) {
		exported = append(exported, w.shown(p.ID))
	}
	w.lose()
	for _, p := range exported {
		if err := w.importParked(p); err != nil {
			t.Fatalf("ImportParked(%s) = %v", p.EventID, err)
		}
	}
	for i, p := range w.parked(inbox.Filter{}) {
		got, want := w.shown(p.ID), exported[i]
		want.State = inbox.StateDead
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(inbox.Parked{}, "ID", "NextTryAt")); diff != "" {
			t.Errorf("message %d after its import (-want +got):\n%s", i+1, diff)
		}
	}
	for _, p := range exported {
		if err := w.importParked(p); !errors.Is(err, inbox.ErrKnown) {
			t.Errorf("a second ImportParked(%s) = %v, want ErrKnown", p.EventID, err)
		}
	}

	// Their records come again, and a new message of the key: it waits behind what was imported.
	again := []*kgo.Record{{Topic: topic, Key: broken.Key, Value: broken.Value, Headers: broken.Headers}, {Topic: topic, Key: behind.Key, Value: behind.Value, Headers: behind.Headers}}
	w.produce(append(again, record("u1", 4, ""))...)
	w.wait("the new one behind the imported ones", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateWaiting})) == 1 })
	w.wantEffects("u1", 1)
	if n := w.count(`SELECT parked FROM inbox_holds`); n != 3 {
		t.Errorf("the hold counts %d messages, want 3", n)
	}
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); n != 2 || err != nil {
		t.Fatalf("Replay() = %d, %v, want the two imported ones", n, err)
	}
	w.wait("nothing parked", func() bool { return len(w.parked(inbox.Filter{})) == 0 })
	w.wantEffects("u1", 1, 2, 3, 4)
	for _, p := range exported {
		if err := w.importParked(p); !errors.Is(err, inbox.ErrKnown) {
			t.Errorf("ImportParked(%s) after it was handled = %v, want ErrKnown", p.EventID, err)
		}
	}
	if n := w.count(`SELECT count(*) FROM inbox_audit WHERE (action, by, reason) IN (('import', 'bob', ''), ('edit', 'alice', 'mended'))`); n != 3 {
		t.Errorf("%d rows in the audit, want two imports and the edit", n)
	}
}

func TestAnImportIsRefusedWhenItCouldRepeatAnEffect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.options())
	broken := record("u1", 1, "")
	broken.Value = []byte(`{`)
	w.produce(broken)
	dead := w.onlyDead()
	if err := inbox.DiscardParked(t.Context(), w.db.Pool, dead, "test", "bob"); err != nil {
		t.Fatal(err)
	}
	other := dead
	other.Payload = []byte(`{"seq":1}`)
	old := dead
	binary.BigEndian.PutUint64(old.EventID[:8], uint64(time.Now().Add(-29*24*time.Hour).UnixMilli())<<16|0x7000)
	moved := dead
	moved.Key = "u2"
	for _, tc := range []struct {
		name   string
		parked inbox.Parked
		want   error // nil: any
	}{
		{"discarded here", dead, inbox.ErrKnown},
		{"known with another payload", other, inbox.ErrConflict},
		{"so old that it may be forgotten", old, inbox.ErrTooOld},
		{"under another key than its record's", moved, nil},
	} {
		if err := w.importParked(tc.parked); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("import of a message that is %s = %v, want %v", tc.name, err, tc.want)
		}
	}
	if n := w.count(`SELECT (SELECT count(*) FROM parked_messages) + (SELECT count(*) FROM inbox_holds)`); n != 0 {
		t.Errorf("%d rows after nothing but refusals, want 0", n)
	}
}

func TestAnImportedMessageOfAReleasedKeyHoldsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, Policy: inbox.ReleaseKey, Handle: apply}}, w.options())
	broken := record("u1", 1, "")
	broken.Value = []byte(`{`)
	w.produce(broken)
	dead := w.onlyDead()
	w.lose()
	if err := w.importParked(dead); err != nil {
		t.Fatal(err)
	}
	w.produce(record("u1", 2, ""))
	w.wait("the next message passes it", func() bool { return len(w.effects("u1")) == 1 })
	if p := w.parked(inbox.Filter{}); len(p) != 1 || !p[0].Released {
		t.Errorf("parked = %+v, want the imported one, released", p)
	}
}
