package main

import (
	"strings"
	"testing"
)

func says(t *testing.T, said string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("it does not say %q:\n%s", word, said)
		}
	}
}

// A group holds a key: what lies behind is the group's business, whether it has met the message or not. The rebuild says so,
// every time, until the group has done it.
func TestARebuildIsNotDoneWhileTheGroupHoldsAKey(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	service := r.start("warehouse")
	r.publish("ada", []byte("{"))
	r.completedFor("ada", "ada@example.com")
	r.await(2, `SELECT count(*) FROM warehouse.parked_messages`)
	service.interrupt()
	r.completedFor("ada", "ada@example.com") // unread by the group
	r.completedFor("bob", "bob@example.com") // this one as well, and no key holds it back

	said := r.rebuild("warehouse", "warehouse-again", exitPartial, rebuildDoc{CameBack: 1, Left: 3, Open: 3})
	says(t, said, "not all is made again: 3 are left to group warehouse", "orderflow dlq list --group warehouse")
	said = r.rebuild("warehouse", "warehouse-again", exitPartial, rebuildDoc{Open: 3})
	says(t, said, "3 are left to group warehouse")

	r.start("warehouse")
	r.await(3, `SELECT count(*) FROM warehouse.parked_messages`)
	got := orderflow(t.Context(), "dlq", "discard", "--class", "undecodable", "--reason", "not ours", "--yes", "--database-url", r.db.URL)
	if got.code != 0 {
		t.Fatalf("dlq discard = exit %d, %s", got.code, got.stderr)
	}
	r.await(3, `SELECT count(DISTINCT order_id) FROM warehouse.shipments`)
	r.await(0, `SELECT count(*) FROM warehouse.parked_messages`)
	r.rebuild("warehouse", "warehouse-again", 0, rebuildDoc{})
	if n := r.count(`SELECT count(*) FROM warehouse.shipments`); n != 3 {
		t.Errorf("%d shipments after all of it, want 3", n)
	}
}

// The name itself holds a key, for a message that only a newer program can read: there is nothing to wait for.
func TestARebuildDoesNotWaitForWhatItCannotRead(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.publishAs("order.completed.v9", "ada", []byte("{}"))
	r.completedFor("ada", "ada@example.com")
	r.completedFor("bob", "bob@example.com")
	said := r.rebuild("warehouse", "warehouse-again", exitPartial, rebuildDoc{CameBack: 1, Held: 1, Waiting: 1})
	says(t, said, "1 messages are held, 1 wait behind others of their key, 0 are dead", "orderflow dlq list --group warehouse-again")

	r.exec(`UPDATE warehouse.inbox_holds SET next_at = now() - interval '1 hour'`) // as after half an hour
	r.rebuild("warehouse", "warehouse-again", exitPartial, rebuildDoc{Held: 1, Waiting: 1}, "--timeout", "5s")
}

func TestTheSameRebuildTriesAgainWhatIsHeld(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.exec(`ALTER TABLE warehouse.shipments ADD CONSTRAINT no_ada CHECK (user_id <> 'ada')`)
	for range 2 {
		r.completedFor("ada", "ada@example.com")
	}
	r.completedFor("bob", "bob@example.com")
	r.rebuild("warehouse", "warehouse-again", exitPartial, rebuildDoc{CameBack: 1, Held: 1, Waiting: 1})

	r.exec(`UPDATE warehouse.inbox_holds SET next_at = now() + interval '1 hour'`) // at once would be no proof
	r.exec(`ALTER TABLE warehouse.shipments DROP CONSTRAINT no_ada`)
	r.rebuild("warehouse", "warehouse-again", 0, rebuildDoc{CameBack: 2})
}

func TestARebuildThatGetsNowhereSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	for range 3 {
		r.completed("ann@example.com")
	}
	tx, err := r.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE warehouse.shipments`); err != nil {
		t.Fatal(err)
	}
	said := r.rebuild("warehouse", "warehouse-again", exitTimeout, rebuildDoc{}, "--timeout", "1s")
	says(t, said, "nothing has moved for 1s: 3 of 3 records are not done", goesOn)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.rebuild("warehouse", "warehouse-again", 0, rebuildDoc{CameBack: 3})

	// A held message that somebody is trying, and does not come to an end with.
	r.publishAs("order.completed.v9", "ada", []byte("{}"))
	r.rebuild("warehouse", "warehouse-again", exitPartial, rebuildDoc{Held: 1})
	r.exec(`UPDATE warehouse.inbox_holds SET lease_token = gen_random_uuid(), leased_until = now() + interval '1 hour'`)
	said = r.rebuild("warehouse", "warehouse-again", exitTimeout, rebuildDoc{Held: 1}, "--timeout", "1s")
	says(t, said, "nothing has moved for 1s: everything is read, and the messages of 1 held keys are to be tried", goesOn)
}
