package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// poison refuses the message n of key until it is cured.
func poison(key string, n int) (refuse func(outbox.Record) bool, cure func()) {
	var cured atomic.Bool
	value := fmt.Sprintf(`{"n":%d}`, n)
	return func(r outbox.Record) bool { return !cured.Load() && r.Key == key && string(r.Value) == value },
		func() { cured.Store(true) }
}

// values are what was published of a key, in order.
func values(records []outbox.Record, key string) (got []string) {
	for _, r := range records {
		if r.Key == key {
			got = append(got, string(r.Value))
		}
	}
	return got
}

func TestRefusedMessageParksItsKeyAndNoOther(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	refuse, cure := poison("bad", 2)
	broker := &outboxtest.Broker{Refuse: refuse, Partitions: 1} // one batch: its neighbours are refused with it
	var page []outbox.Message
	for n := 1; n <= 3; n++ {
		page = append(page, message("orders", "good", n), message("orders", "bad", n))
	}
	write(t, db.Pool, page...)
	_, stop := start(t, db.Pool, broker, outbox.RelayOptions{})
	waitFor(t, broker, 4)
	// A later message queues behind, also for the next leader.
	write(t, db.Pool, message("orders", "bad", 4), message("orders", "good", 4), message("other", "bad", 1))
	waitFor(t, broker, 6)
	stop()
	start(t, db.Pool, broker, outbox.RelayOptions{})
	write(t, db.Pool, message("orders", "bad", 5), message("orders", "good", 5))
	waitFor(t, broker, 7)

	if got, want := fmt.Sprint(values(broker.Records(), "good")), `[{"n":1} {"n":2} {"n":3} {"n":4} {"n":5}]`; got != want {
		t.Errorf("published of key good %s, want %s", got, want)
	}
	var parked []outbox.Parked
	eventually(t, func() (err error) {
		if parked, err = outbox.ListParked(t.Context(), db.Pool, schema); err == nil && len(parked) != 4 {
			err = fmt.Errorf("%d messages are parked, want 4", len(parked))
		}
		return err
	})
	if parked[0].Error == "" || parked[1].Error != "" {
		t.Errorf("errors are %q and %q, want one on the culprit only", parked[0].Error, parked[1].Error)
	}

	// Released too early, it is refused again and everything stays where it is.
	if n, err := outbox.Release(t.Context(), db.Pool, schema, "orders", "bad", "ada"); err != nil || n != 4 {
		t.Fatalf("Release = %d, %v, want 4 messages", n, err)
	}
	eventually(t, func() error {
		parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
		if err == nil && (len(parked) != 4 || parked[0].Attempts != 2 || parked[3].Released) {
			err = fmt.Errorf("parked after a release in vain: %+v", parked)
		}
		return err
	})
	cure()
	if _, err := outbox.Release(t.Context(), db.Pool, schema, "orders", "bad", "ada"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, broker, 11)
	write(t, db.Pool, message("orders", "bad", 6))
	records := waitFor(t, broker, 12)
	line := "release by ada of relay orders/bad 1: "
	wantAudit(t, db.Pool, line, line, line, line, line, line, line, line)
	want := `[{"n":1} {"n":1} {"n":2} {"n":3} {"n":4} {"n":5} {"n":6}]` // n 1 of topic other is the second one
	if got := fmt.Sprint(values(records, "bad")); got != want {
		t.Errorf("published of key bad %s, want %s", got, want)
	}
	const names = "ce_specversion ce_id ce_type ce_source ce_time content-type outbox-seq ce_subject"
	for _, r := range records {
		if got := headerNames(r.Headers); got != names || string(r.Headers[2].Value) != "test.happened.v1" {
			t.Errorf("key %s: headers %s and type %s, want those of a message that was never parked", r.Key, got, r.Headers[2].Value)
		}
	}
}

func TestDiscardedMessageLetsItsKeyGoOn(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	refuse, _ := poison("bad", 1)
	broker := &outboxtest.Broker{Refuse: refuse}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	culprit := message("orders", "bad", 1)
	write(t, db.Pool, culprit, message("orders", "bad", 2), message("orders", "good", 1))
	waitFor(t, broker, 1)
	var parked []outbox.Parked
	eventually(t, func() (err error) {
		if parked, err = outbox.ListParked(t.Context(), db.Pool, schema); err == nil && len(parked) != 2 {
			err = fmt.Errorf("%d messages are parked, want 2", len(parked))
		}
		return err
	})
	if err := outbox.Discard(t.Context(), db.Pool, schema, parked[0].ID, "ada", ""); err == nil {
		t.Error("Discard without a reason succeeds, want an error")
	}
	if err := outbox.Discard(t.Context(), db.Pool, schema, parked[0].ID, "ada", "sent by hand"); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Discard(t.Context(), db.Pool, schema, parked[0].ID, "ada", "again"); !errors.Is(err, outbox.ErrNotParked) {
		t.Errorf("second Discard = %v, want ErrNotParked", err)
	}
	waitFor(t, broker, 2)
	write(t, db.Pool, message("orders", "bad", 3))
	if got, want := fmt.Sprint(values(waitFor(t, broker, 3), "bad")), `[{"n":2} {"n":3}]`; got != want {
		t.Errorf("published of key bad %s, want %s", got, want)
	}
	wantAudit(t, db.Pool, "discard by ada of relay orders/bad 1: sent by hand")
}

// wantAudit checks what outbox_audit says.
func wantAudit(t *testing.T, pool *pgxpool.Pool, want ...string) {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `
		SELECT format('%s by %s of %s %s/%s %s: %s', action, by, relay, topic, key, messages, reason)
		FROM orders.outbox_audit
		ORDER BY id`)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("audit (-want +got), %v:\n%s", err, diff)
	}
}

func TestDiscardedKeyGoesOnWithWhatCameMeanwhile(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	refuse, _ := poison("bad", 1)
	broker := &outboxtest.Broker{Refuse: refuse}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	write(t, db.Pool, message("orders", "bad", 1), message("orders", "bad", 2), message("orders", "good", 1))
	waitFor(t, broker, 1)
	var keys []outbox.ParkedKey
	eventually(t, func() (err error) {
		if keys, err = outbox.ListParkedKeys(t.Context(), db.Pool, schema); err == nil && (len(keys) != 1 || keys[0].Messages != 2) {
			err = fmt.Errorf("parked keys %+v, want one with 2 messages", keys)
		}
		return err
	})
	if k := keys[0]; k.Relay != "relay" || k.Topic != "orders" || k.Key != "bad" || k.Type != "test.happened.v1" || k.Attempts != 1 ||
		!strings.Contains(k.Error, "refused") || k.Released || time.Since(k.ParkedAt) > time.Hour {
		t.Errorf("parked key %+v, want that of the refused message", k)
	}
	if n, err := outbox.DiscardKey(t.Context(), db.Pool, schema, "orders", "bad", "ada", "test"); err != nil || n != 2 {
		t.Fatalf("DiscardKey = %d, %v, want 2 messages", n, err)
	}
	// The leader may learn of it only after it has put this one aside.
	write(t, db.Pool, message("orders", "bad", 3))
	if got, want := fmt.Sprint(values(waitFor(t, broker, 2), "bad")), `[{"n":3}]`; got != want {
		t.Errorf("published of key bad %s, want %s", got, want)
	}
	eventually(t, func() error {
		keys, err := outbox.ListParkedKeys(t.Context(), db.Pool, schema)
		if err == nil && len(keys) > 0 {
			err = fmt.Errorf("still parked: %+v", keys)
		}
		return err
	})
	if _, err := outbox.DiscardKey(t.Context(), db.Pool, schema, "orders", "bad", "ada", "again"); !errors.Is(err, outbox.ErrNotParked) {
		t.Errorf("second DiscardKey = %v, want ErrNotParked", err)
	}
	wantAudit(t, db.Pool, "discard by ada of relay orders/bad 1: test", "discard by ada of relay orders/bad 1: test")
}

func TestBrokerOutageParksNothing(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	write(t, db.Pool, message("orders", "a", 0))
	waitFor(t, broker, 1)
	broker.SetDown(true)
	for n := 1; n <= 20; n++ {
		write(t, db.Pool, message("orders", "a", n))
	}
	eventually(t, func() error {
		status, err := outbox.Inspect(t.Context(), db.Pool, schema)
		if err == nil && status.Relays[0].Backlog != 20 {
			err = fmt.Errorf("backlog is %d, want 20", status.Relays[0].Backlog)
		}
		return err
	})
	broker.SetDown(false)
	if got := values(waitFor(t, broker, 21), "a"); len(got) != 21 || got[20] != `{"n":20}` {
		t.Errorf("published %v, want 0 to 20 once each", got)
	}
	if parked, err := outbox.ListParked(t.Context(), db.Pool, schema); err != nil || len(parked) != 0 {
		t.Errorf("parked %v (%v), want none", parked, err)
	}
}
