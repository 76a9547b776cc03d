package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func TestConsumerAppliesARedeliveredMessageOnce(t *testing.T) {
	t.Parallel()
	onEachTable(t, testConsumerAppliesARedeliveredMessageOnce)
}

func testConsumerAppliesARedeliveredMessageOnce(w *world) {
	t := w.T
	first := record("u1", 1, "")
	again := &kgo.Record{Topic: topic, Key: first.Key, Value: first.Value, Headers: first.Headers}
	w.produce(first, again, record("u1", 2, ""), record("u2", 1, ""))
	stop := w.start(apply, w.options())
	w.wait("three effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 3 })
	w.wait("all offsets committed", func() bool { return w.lag() == 0 })
	stop()

	// The group forgets its offsets: everything is delivered again.
	if _, err := w.adm.DeleteGroup(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	w.start(apply, w.options())
	w.wait("all offsets committed again", func() bool { return w.lag() == 0 })
	w.wantEffects("u1", 1, 2)
	w.wantEffects("u2", 1)
}

// lag is the number of records above the group's committed offsets; of a partition without a commit, all of them.
func (w *world) lag() int64 {
	ends, err := w.adm.ListEndOffsets(w.Context(), topic)
	if err != nil {
		w.Fatal(err)
	}
	committed, err := w.adm.FetchOffsets(w.Context(), "test")
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		w.Fatal(err)
	}
	lag := int64(0)
	ends.Each(func(end kadm.ListedOffset) {
		at, ok := committed.Lookup(end.Topic, end.Partition)
		if !ok || at.At < 0 {
			lag += end.Offset
			return
		}
		lag += end.Offset - at.At
	})
	return lag
}

func TestPoisonStopsItsKeyOnlyAndLaterMessagesRunInOrderAfterReplay(t *testing.T) {
	t.Parallel()
	onEachTable(t, testPoisonStopsItsKeyOnlyAndLaterMessagesRunInOrderAfterReplay)
}

func testPoisonStopsItsKeyOnlyAndLaterMessagesRunInOrderAfterReplay(w *world) {
	t := w.T
	var fixed atomic.Bool
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" && !fixed.Load() {
			return inbox.PermanentAs("business_invalid", errors.New("amount differs from order"))
		}
		return apply(ctx, tx, m)
	}
	w.start(handle, w.options())
	w.produce(record("u1", 1, ""), record("u1", 2, "poison"), record("u1", 3, ""))
	for i := range 50 {
		w.produce(record("u1", 4+i, ""), record(fmt.Sprintf("v%d", i), 1, ""))
	}
	w.wait("the other keys", func() bool { return w.count(`SELECT count(*) FROM effects WHERE key <> 'u1'`) == 50 })
	w.wait("52 parked", func() bool { return len(w.parked(inbox.Filter{})) == 52 })
	w.wantEffects("u1", 1)
	if n := w.count(`SELECT parked FROM inbox_holds`); n != 52 {
		t.Errorf("hold counts %d messages, want 52", n)
	}
	dead := w.parked(inbox.Filter{State: inbox.StateDead})
	if len(dead) != 1 || dead[0].Class != "business_invalid" || dead[0].Attempts != 1 || dead[0].Offset == 0 {
		t.Fatalf("dead = %+v, want the poison message with class business_invalid after one attempt", dead)
	}

	t.Run("replayed before it is fixed it dies again, its attempts counted on", func(t *testing.T) {
		if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{IDs: []int64{dead[0].ID}}, "alice"); n != 1 || err != nil {
			t.Fatalf("Replay() = %d, %v, want 1", n, err)
		}
		w.wait("two attempts", func() bool {
			d := w.parked(inbox.Filter{State: inbox.StateDead})
			return len(d) == 1 && d[0].Attempts == 2
		})
		w.wantEffects("u1", 1)
	})

	fixed.Store(true)
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{Key: "u1"}, "alice"); n != 1 || err != nil {
		t.Fatalf("Replay() = %d, %v, want 1", n, err)
	}
	w.wait("nothing parked", func() bool { return len(w.parked(inbox.Filter{})) == 0 })
	want := make([]int, 53)
	for i := range want {
		want[i] = i + 1
	}
	w.wantEffects("u1", want...)
	if n := w.count(`SELECT count(*) FROM inbox_holds`); n != 0 {
		t.Errorf("%d holds left, want 0", n)
	}
	if n := w.count(`SELECT count(*) FROM processed_messages WHERE state <> 'done'`); n != 0 {
		t.Errorf("%d messages not done, want 0", n)
	}
	if n := w.count(`SELECT count(*) FROM inbox_audit WHERE action = 'replay' AND by = 'alice'`); n != 2 {
		t.Errorf("%d replays in the audit, want 2", n)
	}

	// The copies: one for each death, with the payload as it was.
	if n := w.count(`SELECT count(*) FROM outbox WHERE topic = 'test.dlq' AND key = 'u1' AND headers->>'x-error-class' = 'business_invalid'
		AND headers->>'x-attempts' IN ('1', '2') AND headers->>'x-orig-topic' = 'orders' AND headers->>'x-consumer-group' = 'test'
		AND payload = convert_to('{"seq":2,"what":"poison"}', 'UTF8')`); n != 2 {
		t.Errorf("%d copies in the outbox, want 2", n)
	}
}

func TestTransientFailureIsRetriedInOrderAndThenHeld(t *testing.T) {
	t.Parallel()
	onEachTable(t, testTransientFailureIsRetriedInOrderAndThenHeld)
}

func testTransientFailureIsRetriedInOrderAndThenHeld(w *world) {
	t := w.T
	var calls atomic.Int32
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "flaky" && calls.Add(1) < 8 {
			return errors.New("not now")
		}
		return apply(ctx, tx, m)
	}
	w.start(handle, w.options())
	w.produce(record("u1", 1, "flaky"), record("u1", 2, ""), record("u1", 3, ""))
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 3 })
	w.wantEffects("u1", 1, 2, 3)
	w.wait("nothing held", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
	if n := w.count(`SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d dead letters, want 0", n)
	}
}

func TestExhaustedMessageIsDeadOnlyWithEvidenceThatOthersSucceed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" {
			return inbox.WithClass("unknown_order", errors.New("no such order"))
		}
		return apply(ctx, tx, m)
	}
	opts := w.options()
	opts.MaxTries = 3
	w.start(handle, opts)
	w.produce(record("u1", 1, "poison"))
	w.wait("ten tries", func() bool {
		p := w.parked(inbox.Filter{})
		return len(p) == 1 && p[0].Attempts >= 10
	})
	if p := w.parked(inbox.Filter{}); p[0].State != inbox.StateHeld {
		t.Fatalf("in a quiet system the message is %s after %d attempts, want held", p[0].State, p[0].Attempts)
	}
	w.wait("dead after others succeeded", func() bool {
		others := make([]*kgo.Record, 100)
		for i := range others {
			others[i] = record(fmt.Sprintf("v%d", i), 1, "")
		}
		w.produce(others...)
		return w.parked(inbox.Filter{})[0].State == inbox.StateDead
	})
	if p := w.parked(inbox.Filter{})[0]; p.Class != "unknown_order" || p.Attempts <= 10 {
		t.Errorf("dead as %s after %d attempts, want unknown_order after more than the 10 before", p.Class, p.Attempts)
	}
}

func TestHandlerPanicIsRecoveredAndItsMessageHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "panic" {
			panic("boom")
		}
		return apply(ctx, tx, m)
	}
	opts := w.options()
	opts.RetryMin, opts.RetryMax = time.Minute, time.Minute
	w.start(handle, opts)
	w.produce(record("u1", 1, "panic"), record("u1", 2, ""), record("u2", 1, ""))
	w.wait("parked", func() bool { return len(w.parked(inbox.Filter{Class: inbox.ClassHandlerPanic})) == 1 })
	w.wait("other key", func() bool { return len(w.effects("u2")) == 1 })
	w.wantEffects("u1")
}

func TestDiscardedMessagesAreRememberedAndTheirKeyGoesOn(t *testing.T) {
	t.Parallel()
	onEachTable(t, testDiscardedMessagesAreRememberedAndTheirKeyGoesOn)
}

func testDiscardedMessagesAreRememberedAndTheirKeyGoesOn(w *world) {
	t := w.T
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
		switch what(m) {
		case "old":
			return inbox.Discard("superseded")
		case "poison":
			return inbox.Permanent(errors.New("no"))
		}
		return nil
	}
	w.start(handle, w.options())
	w.produce(record("u1", 1, "old"), record("u1", 2, ""), record("u1", 3, "poison"), record("u1", 4, ""))
	w.wait("two parked", func() bool { return len(w.parked(inbox.Filter{})) == 2 })
	w.wantEffects("u1", 2)
	poison := w.parked(inbox.Filter{State: inbox.StateDead})[0]
	if err := inbox.DiscardParked(t.Context(), w.db.Pool, poison, "customer refunded by hand", "bob"); err != nil {
		t.Fatal(err)
	}
	w.wait("the key goes on", func() bool { return len(w.effects("u1")) == 2 })
	w.wantEffects("u1", 2, 4)
	if n := w.count(`SELECT count(*) FROM processed_messages WHERE state = 'discarded'`); n != 2 {
		t.Errorf("%d discarded, want 2", n)
	}
	if n := w.count(`SELECT count(*) FROM inbox_audit WHERE (by, reason) IN (('handler', 'superseded'), ('bob', 'customer refunded by hand'))`); n != 2 {
		t.Errorf("%d rows in the audit, want 2", n)
	}
	if err := inbox.DiscardParked(t.Context(), w.db.Pool, poison, "again", "bob"); !errors.Is(err, inbox.ErrNotFound) {
		t.Errorf("second DiscardParked() = %v, want ErrNotFound", err)
	}
}
