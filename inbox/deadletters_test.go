package inbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func TestParkedMessagesAreGroupedByWhatTheyFailedWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		switch what(m) {
		case "amount":
			return inbox.PermanentAs("business_invalid", fmt.Errorf("amount of %s differs", m.ID))
		case "stock":
			return inbox.PermanentAs("business_invalid", errors.New("no stock"))
		}
		return apply(ctx, tx, m)
	}, w.options())
	w.produce(record("u1", 1, "amount"), record("u1", 2, ""), record("u1", 3, ""), record("u2", 1, "amount"), record("u3", 1, "stock"))
	w.wait("five parked", func() bool { return len(w.parked(inbox.Filter{})) == 5 })

	got, err := inbox.GroupParked(t.Context(), w.db.Pool, inbox.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	want := []inbox.ParkedGroup{
		{Group: "test", Type: placed, Class: "business_invalid", Dead: 2, Keys: 2},
		{Group: "test", Type: placed, Class: "business_invalid", Dead: 1, Keys: 1, Error: "no stock"},
		{Group: "test", Type: placed, Waiting: 2, Keys: 1},
	}
	ignored := cmpopts.IgnoreFields(inbox.ParkedGroup{}, "Fingerprint", "FirstSeen", "LastSeen")
	sample := cmpopts.IgnoreFields(inbox.ParkedGroup{}, "Error")
	if len(got) != 3 || !cmp.Equal(want[0], got[0], ignored, sample) || !cmp.Equal(want[1:], got[1:], ignored) {
		t.Fatalf("GroupParked() = %+v, want %+v", got, want)
	}
	amount := w.parked(inbox.Filter{Fingerprint: got[0].Fingerprint})
	if len(amount) != 2 || amount[0].Key != "u1" || amount[1].Key != "u2" || got[0].Error != amount[1].Error {
		t.Errorf("with the fingerprint of %+v: %+v, want u1 and u2, the error of the second as the sample", got[0], amount)
	}
	if !got[0].FirstSeen.Equal(amount[0].FirstFailedAt) || !got[0].LastSeen.Equal(amount[1].LastFailedAt) {
		t.Errorf("seen from %v to %v, want %v to %v", got[0].FirstSeen, got[0].LastSeen, amount[0].FirstFailedAt, amount[1].LastFailedAt)
	}
	if got[2].Fingerprint != "" || got[2].FirstSeen.IsZero() {
		t.Errorf("the waiting ones are %+v, want no fingerprint and the time of their parking", got[2])
	}
}

func TestAReplayDropsWhatHasItsFateAlready(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var fixed atomic.Bool
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" && !fixed.Load() {
			return inbox.Permanent(errors.New("no"))
		}
		return apply(ctx, tx, m)
	}, w.options())
	w.produce(record("u1", 1, "poison"), record("u1", 2, ""), record("u1", 3, ""), record("u2", 1, "poison"), record("u2", 2, ""))
	w.wait("five parked", func() bool { return len(w.parked(inbox.Filter{})) == 5 })
	fixed.Store(true)

	// As after a restore of one table only: u1's first message was handled.
	if _, err := w.db.Pool.Exec(t.Context(), `
		UPDATE processed_messages SET state = 'done'
		WHERE event_id = (SELECT event_id FROM parked_messages WHERE key = 'u1' ORDER BY id LIMIT 1)`); err != nil {
		t.Fatal(err)
	}
	var ids []int64
	for _, p := range w.parked(inbox.Filter{State: inbox.StateDead}) {
		ids = append(ids, p.ID)
	}
	got, err := inbox.ForecastReplay(t.Context(), w.db.Pool, "test", ids)
	if want := (inbox.Forecast{Run: 1, Drop: 1, Behind: 3}); err != nil || got != want {
		t.Errorf("ForecastReplay() = %+v, %v, want %+v", got, err, want)
	}
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); n != 1 || err != nil {
		t.Errorf("Replay() = %d, %v, want u2's message handed back", n, err)
	}
	w.wait("nothing parked", func() bool { return len(w.parked(inbox.Filter{})) == 0 })
	w.wantEffects("u1", 2, 3)
	w.wantEffects("u2", 1, 2)
	if n := w.count(`SELECT count(*) FROM inbox_holds`); n != 0 {
		t.Errorf("%d holds left, want 0", n)
	}
	if n := w.count(`SELECT count(*) FROM inbox_audit WHERE (action, by) IN (('discard', 'alice'), ('replay', 'alice'))`); n != 2 {
		t.Errorf("%d rows in the audit, want one for each", n)
	}
}

// A dead letter may be too large for its copy, which has more headers: it is copied without its payload, its neighbours whole.
func TestOnlyACopyThatIsTooLargeLacksItsPayload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.BatchSize, opts.BatchWait = 2, time.Minute // both in one transaction
	sized := func(key string, bytes int) *kgo.Record {
		return payload(record(key, 1, ""), fmt.Appendf(nil, `{"seq":1,"what":"%s"}`, strings.Repeat("x", bytes)))
	}
	large, tooLarge := sized("u1", 600_000), sized("u2", 999_200)
	w.produce(large, tooLarge)
	w.start(func(context.Context, pgx.Tx, inbox.Message) error { return inbox.Permanent(errors.New("no")) }, opts)
	w.wait("both dead", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateDead})) == 2 })
	if n := w.count(`SELECT count(DISTINCT xmin::text) FROM parked_messages`); n != 1 {
		t.Fatalf("parked by %d transactions, want 1", n)
	}
	if n := w.count(`SELECT count(*) FROM outbox WHERE key = 'u1' AND payload = $1 AND NOT headers ? 'x-payload-omitted'`, large.Value); n != 1 {
		t.Errorf("%d whole copies of the one that fits, want 1", n)
	}
	if n := w.count(`SELECT count(*) FROM outbox WHERE key = 'u2' AND length(coalesce(payload, '')) = 0 AND headers->>'x-payload-omitted' = $1`,
		strconv.Itoa(len(tooLarge.Value))); n != 1 {
		t.Errorf("%d copies without payload of the one that does not, want 1", n)
	}
	for _, p := range w.parked(inbox.Filter{Key: "u2"}) {
		if got := w.shown(p.ID).Payload; !bytes.Equal(got, tooLarge.Value) {
			t.Errorf("the parked message has %d bytes, want all %d", len(got), len(tooLarge.Value))
		}
	}
}

// Between the plan of a discard and its deed somebody may have replayed the message: it is about to be handled, and stays.
func TestADiscardSparesWhatWasReplayedSinceItWasShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.start(func(context.Context, pgx.Tx, inbox.Message) error {
		return inbox.Permanent(errors.New("not deployed yet"))
	}, w.options())
	w.produce(record("u1", 1, ""))
	dead := w.onlyDead()
	stop()
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{IDs: []int64{dead.ID}}, "alice"); n != 1 || err != nil {
		t.Fatalf("Replay() = %d, %v, want 1", n, err)
	}
	if err := inbox.DiscardParked(t.Context(), w.db.Pool, dead, "nobody needs it", "bob"); !errors.Is(err, inbox.ErrChanged) {
		t.Errorf("DiscardParked of what is held again = %v, want ErrChanged", err)
	}
	if n := w.count(`SELECT count(*) FROM inbox_audit WHERE action = 'discard'`); n != 0 {
		t.Errorf("%d discards in the audit, want 0", n)
	}
	w.start(apply, w.options())
	w.wait("it is handled", func() bool { return len(w.parked(inbox.Filter{})) == 0 })
	w.wantEffects("u1", 1)
}
