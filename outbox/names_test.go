package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func TestRelaysOfSeveralNamesEachPublishEverything(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	kafka, archive, late := &outboxtest.Broker{}, &outboxtest.Broker{}, &outboxtest.Broker{}
	_, stop := start(t, db.Pool, archive, outbox.RelayOptions{Name: "archive"})
	start(t, db.Pool, kafka, outbox.RelayOptions{})
	write(t, db.Pool, message("orders", "a", 0))
	waitFor(t, archive, 1)
	stop() // one that is down goes on from its own cursor, whatever the other has published meanwhile
	for n := 1; n < 5; n++ {
		write(t, db.Pool, message("orders", "a", n))
		waitFor(t, kafka, n+1)
	}
	start(t, db.Pool, archive, outbox.RelayOptions{Name: "archive"})
	write(t, db.Pool, message("orders", "a", 5))
	want := `[{"n":0} {"n":1} {"n":2} {"n":3} {"n":4} {"n":5}]`
	for name, broker := range map[string]*outboxtest.Broker{"relay": kafka, "archive": archive} {
		if got := fmt.Sprint(values(waitFor(t, broker, 6), "a")); got != want {
			t.Errorf("relay %s has published %s, want %s", name, got, want)
		}
	}
	// A name that is added later begins with what the ring still holds.
	start(t, db.Pool, late, outbox.RelayOptions{Name: "late"})
	if got := fmt.Sprint(values(waitFor(t, late, 6), "a")); got != want {
		t.Errorf("a relay added later has published %s, want %s", got, want)
	}
}

func TestForgottenRelayIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	forget := func(name string) error { return outbox.Forget(t.Context(), db.Pool, schema, name, "ada") }
	refuse, cure := poison("bad", 1)
	refusing := &outboxtest.Broker{Refuse: refuse}
	_, stop := start(t, db.Pool, refusing, outbox.RelayOptions{Name: "old"})
	write(t, db.Pool, message("orders", "bad", 1), message("orders", "a", 1))
	waitFor(t, refusing, 1)
	eventually(t, func() error {
		keys, err := outbox.ListParkedKeys(t.Context(), db.Pool, schema)
		if err == nil && len(keys) != 1 {
			err = errors.New("nothing is parked yet")
		}
		return err
	})
	if err := forget("old"); !errors.Is(err, outbox.ErrInUse) || !strings.Contains(err.Error(), "leads") {
		t.Errorf("Forget of a relay that leads = %v, want ErrInUse", err)
	}
	stop()
	if err := forget("old"); !errors.Is(err, outbox.ErrInUse) || !strings.Contains(err.Error(), "1 messages are parked") {
		t.Errorf("Forget of a relay with parked messages = %v, want ErrInUse", err)
	}
	if err := forget("nobody"); !errors.Is(err, outbox.ErrUnknownRelay) {
		t.Errorf("Forget of a name that is not there = %v, want ErrUnknownRelay", err)
	}
	if _, err := outbox.DiscardKey(t.Context(), db.Pool, schema, "orders", "bad", "ada", "test"); err != nil {
		t.Fatal(err)
	}
	cure()

	// The leaf behind waits for the name, and for nobody else once its relay has passed.
	var slot int
	if err := db.Pool.QueryRow(t.Context(), `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
		SELECT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint + 4) % 8,
			gen_random_uuid(), 'orders', 'a', 't', 'c', '{"n":2}'
		RETURNING slot`).Scan(&slot); err != nil {
		t.Fatal(err)
	}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	waitFor(t, broker, 3)
	waitsFor := func(want string) {
		t.Helper()
		eventually(t, func() error {
			status, err := outbox.Inspect(t.Context(), db.Pool, schema)
			if err != nil {
				return err
			}
			for _, leaf := range status.Ring {
				if leaf.Slot == slot && fmt.Sprint(leaf.WaitsFor) != want {
					return fmt.Errorf("leaf %d waits for %v, want %s", slot, leaf.WaitsFor, want)
				}
			}
			return nil
		})
	}
	waitsFor("[old]")
	if err := forget("old"); err != nil {
		t.Fatal(err)
	}
	waitsFor("[]")
	var by string
	if err := db.Pool.QueryRow(t.Context(), `
		SELECT by FROM orders.outbox_audit WHERE action = 'forget' AND relay = 'old'`).Scan(&by); err != nil || by != "ada" {
		t.Errorf("audit says that %q forgot it, %v", by, err)
	}
}
