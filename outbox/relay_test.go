package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func TestRelayPublishesWhatCommitsAndNothingElse(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	rolledBack, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := (outbox.Writer{Schema: schema}).Write(t.Context(), rolledBack, message("orders", "a", 1)); err != nil {
		t.Fatal(err)
	}
	if err := rolledBack.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, db.Pool, message("orders", "b", 1), message("orders", "c", 1))
	start(t, db.Pool, broker, outbox.RelayOptions{})
	write(t, db.Pool, message("orders", "b", 2))

	got := ""
	for _, r := range waitFor(t, broker, 3) {
		got += fmt.Sprintf("%s%s ", r.Key, r.Value)
	}
	if want := `b{"n":1} c{"n":1} b{"n":2} `; got != want {
		t.Errorf("published %s, want %s", got, want)
	}
}

func TestRelayLosesNothingWhenATransactionCommitsLate(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	// The late transaction takes its id and its sequence number first, and commits last.
	late, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := (outbox.Writer{Schema: schema}).Write(t.Context(), late, message("orders", "late", 1)); err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		write(t, db.Pool, message("orders", "early", n))
	}
	waitFor(t, broker, 50) // not held up by the open transaction
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	records := waitFor(t, broker, 51)
	if last := records[len(records)-1]; last.Key != "late" {
		t.Errorf("last published %s, want the late one", last.Key)
	}
}

// The role of a writer may insert rows that Write would not.
func TestRelayIsNotStoppedByHeadersThatAreNoStrings(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.outbox (id, topic, key, type, content_type, headers, payload)
		VALUES (gen_random_uuid(), 'orders', 'a', 't', 'c', '{"attempt": 2, "none": null, "tags": ["x"], "text": "y"}', '')`,
	); err != nil {
		t.Fatal(err)
	}
	write(t, db.Pool, message("orders", "b", 1))
	start(t, db.Pool, broker, outbox.RelayOptions{})
	own := map[string]string{}
	for _, h := range waitFor(t, broker, 2)[0].Headers {
		own[h.Key] = string(h.Value)
	}
	got := fmt.Sprintf("%q", []string{own["attempt"], own["none"], own["tags"], own["text"]})
	if want := `["2" "" "[\"x\"]" "y"]`; got != want {
		t.Errorf("headers %s, want %s", got, want)
	}
}

func TestRelayDrainsABacklogPageByPageOnce(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	const messages = 3000
	for range 3 {
		var batch []outbox.Message
		for n := range messages / 3 {
			batch = append(batch, message("orders", fmt.Sprint(n%37), n))
		}
		write(t, db.Pool, batch...)
	}
	start(t, db.Pool, broker, outbox.RelayOptions{PageSize: 70})
	records := waitFor(t, broker, messages)
	if len(records) != messages {
		t.Errorf("%d records for %d messages, want none twice", len(records), messages)
	}
	for i := 1; i < len(records); i++ {
		if records[i-1].Seq >= records[i].Seq {
			t.Fatalf("record %d has seq %d after %d", i, records[i].Seq, records[i-1].Seq)
		}
	}
}

func TestRelayGivesTheLeadershipAwayWhenItStops(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	_, stop := start(t, db.Pool, broker, outbox.RelayOptions{Lease: time.Hour})
	write(t, db.Pool, message("orders", "a", 1))
	waitFor(t, broker, 1)
	stop()
	start(t, db.Pool, broker, outbox.RelayOptions{Lease: time.Hour})
	write(t, db.Pool, message("orders", "a", 2))
	if records := waitFor(t, broker, 2); len(records) != 2 {
		t.Errorf("%d records for 2 messages: the first relay's progress was not saved", len(records))
	}
}

func TestPollDoesNotSeeItsOwnTransaction(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	// Each commit takes the next id, as the relay's own checkpoints do in between.
	for n := range 200 {
		write(t, db.Pool, message("orders", "a", n))
	}
	waitFor(t, broker, 200)
}
