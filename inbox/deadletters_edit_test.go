package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func (w *world) edit(p inbox.Parked, payload string) {
	w.Helper()
	if err := inbox.EditParked(w.Context(), w.db.Pool, p, []byte(payload), "mended", "alice"); err != nil {
		w.Fatal(err)
	}
}

func (w *world) shown(id int64) inbox.Parked {
	w.Helper()
	p, err := inbox.ShowParked(w.Context(), w.db.Pool, id)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// onlyDead waits for the only dead message and shows it.
func (w *world) onlyDead() inbox.Parked {
	w.Helper()
	var dead []inbox.Parked
	w.wait("one dead", func() bool {
		dead = w.parked(inbox.Filter{State: inbox.StateDead})
		return len(dead) == 1
	})
	return w.shown(dead[0].ID)
}

func TestAnEditedMessageRunsInItsPlaceAndItsRecordStaysADuplicate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.options())
	broken := record("u1", 2, "")
	broken.Value = []byte(`{"seq":`)
	w.produce(record("u1", 1, ""), broken, record("u1", 3, ""))
	dead := w.onlyDead()
	redeliver := func() {
		t.Helper()
		w.produce(&kgo.Record{Topic: topic, Key: broken.Key, Value: broken.Value, Headers: broken.Headers})
		w.wait("the redelivery is read", func() bool { return w.lag() == 0 })
	}
	w.edit(dead, `{"seq":20}`)
	w.edit(w.shown(dead.ID), `{"seq":2}`)
	redeliver()

	now := w.shown(dead.ID)
	if string(now.Payload) != `{"seq":2}` || string(now.Original()) != `{"seq":` || len(now.Edits) != 2 || now.State != inbox.StateDead {
		t.Errorf("after two edits %s %s, original %s, %d edits; want the second payload, dead, and the record's own as original", now.State, now.Payload, now.Original(), len(now.Edits))
	}
	if now.EventID != dead.EventID || now.Key != "u1" || len(now.Headers) != len(broken.Headers) {
		t.Errorf("after the edits it is %+v, want id, key and headers as they were", now)
	}
	for _, e := range now.Edits {
		if e.By != "alice" || e.Reason != "mended" || e.At.IsZero() {
			t.Errorf("edit = %+v, want who, why and when", e)
		}
	}
	w.wantEffects("u1", 1)
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); n != 1 || err != nil {
		t.Fatalf("Replay() = %d, %v, want 1", n, err)
	}
	w.wait("nothing parked", func() bool { return len(w.parked(inbox.Filter{})) == 0 })
	redeliver()
	w.wantEffects("u1", 1, 2, 3)
	if p := w.parked(inbox.Filter{}); len(p) != 0 {
		t.Errorf("the record delivered again is parked: %+v; want it dropped as a duplicate", p)
	}
}

// A person has looked at it: what it was tried before says nothing any more.
func TestAReplayedOrEditedMessageHasAllItsTriesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.InlineAttempts, opts.MaxTries, opts.Evidence = 1, 2, -1
	opts.RetryMin, opts.RetryMax = time.Hour, time.Hour
	w.start(func(context.Context, pgx.Tx, inbox.Message) error { return errors.New("fails whatever happens") }, opts)
	w.produce(record("u1", 1, ""))
	tried := func(attempts int, state string) inbox.Parked {
		w.wait(fmt.Sprintf("try %d", attempts), func() bool {
			p := w.parked(inbox.Filter{})
			return len(p) == 1 && p[0].Attempts == attempts
		})
		p := w.parked(inbox.Filter{})[0]
		if p.State != state {
			t.Fatalf("after try %d it is %s, want %s", attempts, p.State, state)
		}
		return p
	}
	tried(1, inbox.StateHeld) // as it came, which does not count
	w.due("u1")
	p := tried(2, inbox.StateHeld)
	w.edit(w.shown(p.ID), `{"seq":2}`) // makes it due
	tried(3, inbox.StateHeld)
	w.due("u1")
	tried(4, inbox.StateDead)
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); n != 1 || err != nil {
		t.Fatalf("Replay() = %d, %v, want 1", n, err)
	}
	tried(5, inbox.StateHeld)
	w.due("u1")
	tried(6, inbox.StateDead)
}

func TestAnEditIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.options())
	broken := record("u1", 1, "")
	broken.Value = []byte(`{`)
	w.produce(broken, record("u1", 2, ""))
	dead := w.onlyDead()
	var behind []inbox.Parked
	w.wait("one behind it", func() bool {
		behind = w.parked(inbox.Filter{State: inbox.StateWaiting})
		return len(behind) == 1
	})
	edit := func(p inbox.Parked, payload, reason string) error {
		return inbox.EditParked(t.Context(), w.db.Pool, p, []byte(payload), reason, "alice")
	}
	gone := dead
	gone.ID = 999
	other := dead
	other.Payload = []byte(`{"seq":7}`)
	for _, tc := range []struct {
		name string
		err  error
		want error // nil: any
	}{
		{"without a reason", edit(dead, `{"seq":1}`, ""), nil},
		{"to what no handler can read", edit(dead, `{"seq":`, "mended"), nil},
		{"of a message that waits", edit(w.shown(behind[0].ID), `{"seq":1}`, "mended"), inbox.ErrChanged},
		{"of a payload that somebody has edited meanwhile", edit(other, `{"seq":1}`, "mended"), inbox.ErrChanged},
		{"of a message that is not parked", edit(gone, `{"seq":1}`, "mended"), inbox.ErrNotFound},
	} {
		if tc.err == nil || tc.want != nil && !errors.Is(tc.err, tc.want) {
			t.Errorf("edit %s = %v, want %v", tc.name, tc.err, tc.want)
		}
	}
	if n := w.count(`SELECT (SELECT count(*) FROM inbox_edits) + (SELECT count(*) FROM inbox_audit)`); n != 0 {
		t.Errorf("%d rows about edits that were refused, want 0", n)
	}
}

func TestAnEditTakesTheMessageFromTheDrainerAtWorkOnIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "park" {
			close(entered)
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return apply(ctx, tx, m)
	}), w.options())
	w.produce(record("u1", 1, "park"), record("u1", 2, ""))
	w.wait("both parked", func() bool { return len(w.parked(inbox.Filter{})) == 2 })
	w.due("u1")
	<-entered
	w.edit(w.shown(w.parked(inbox.Filter{State: inbox.StateHeld})[0].ID), `{"seq":10}`)
	close(release)
	w.wait("nothing parked", func() bool { return len(w.parked(inbox.Filter{})) == 0 })
	w.wantEffects("u1", 10, 2)
}
