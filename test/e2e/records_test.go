package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/test/system"
)

// records returns the first n messages of the users in the topics, each partition in order. It waits for them. A message is
// counted where it appears first: a relay that did not hear Kafka's answer says it again.
func records(t *testing.T, d *system.Dev, n int, topics []string, users ...string) []*kgo.Record {
	t.Helper()
	client := system.Kafka(t, d.Ready.Kafka, kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(t.Context(), decided)
	defer cancel()
	var found []*kgo.Record
	seen := map[string]bool{}
	for len(found) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d records of %v in %v, want %d", len(found), users, topics, n)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			id := header(r, "ce_id")
			if slices.Contains(users, string(r.Key)) && !seen[id] {
				seen[id] = true
				found = append(found, r)
			}
		})
	}
	return found
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// sequences returns each user's user_seqs as the topic has them.
func sequences(t *testing.T, d *system.Dev, topic string, n int, users ...string) map[string][]int64 {
	t.Helper()
	seqs, partitions := map[string][]int64{}, map[string]int32{}
	for _, r := range records(t, d, n, []string{topic}, users...) {
		var e struct {
			UserSeq int64 `json:"user_seq"`
		}
		if err := json.Unmarshal(r.Value, &e); err != nil {
			t.Fatalf("record of topic %s: %v", topic, err)
		}
		user := string(r.Key)
		if before, seen := partitions[user]; seen && before != r.Partition {
			t.Errorf("user %s is in partitions %d and %d of topic %s", user, before, r.Partition, topic)
		}
		seqs[user], partitions[user] = append(seqs[user], e.UserSeq), r.Partition
	}
	return seqs
}

// F21: everything that was ever said about two users is said ten times more, in another order.
func duplicatesHaveNoEffect(t *testing.T, d *system.Dev) {
	paid, declined := system.NewUser(), system.NewUser()
	o := d.Place(t, system.OrderOf(paid, "pm_ok"))
	second := d.Place(t, system.OrderOf(paid, "pm_ok"))
	failed := d.Place(t, system.OrderOf(declined, "pm_declined"))
	for _, id := range []string{o.ID, second.ID} {
		d.AwaitStatus(t, id, decided, "shipped")
	}
	d.AwaitStatus(t, failed.ID, decided, "payment_failed")

	// order.placed, order.completed and shipment.created of two orders; order.placed and order.failed of one.
	said := records(t, d, 8, []string{"orders", "orders.completed", "orders.failed", "shipments"}, paid, declined)
	var again []*kgo.Record
	for range 10 {
		for _, r := range said {
			again = append(again, &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers})
		}
	}
	rand.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	client := system.Kafka(t, d.Ready.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(t.Context(), again...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// A new order of each user lies behind the duplicates of its user's topics: when it is through, they were read.
	behind := d.Place(t, system.OrderOf(paid, "pm_ok"))
	d.AwaitOutside(t, behind.ID, "charge 2750", "mail confirmation", "mail shipped")
	behindFailed := d.Place(t, system.OrderOf(declined, "pm_declined"))
	d.AwaitOutside(t, behindFailed.ID, "mail failure")
	for _, id := range []string{o.ID, second.ID} {
		d.AwaitOutside(t, id, "charge 2750", "mail confirmation", "mail shipped")
	}
	d.AwaitOutside(t, failed.ID, "mail failure")
	var history, shipments int
	err := d.DB.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM orders.order_history WHERE order_id = $1), (SELECT count(*) FROM warehouse.shipments WHERE order_id = $1)`,
		o.ID).Scan(&history, &shipments)
	if err != nil || history != 3 || shipments != 1 {
		t.Errorf("order %s has %d history rows and %d shipments, %v; want 3 and 1", o.ID, history, shipments, err)
	}
}

// F19: a message that cannot be applied is put aside; the rest of its key waits, nobody else does; once it is mended
// everything happens in order.
func poisonHoldsItsKey(t *testing.T, d *system.Dev) {
	user := system.NewUser()
	poisoned := placeDamaged(t, d, user)
	parked := func() (ids, states []string) {
		var docs []struct {
			ID, State, Class string
		}
		out := d.Binary.MustRun(t, "dlq", "list", "--group", "order", "--key", user, "--data-dir", d.Ready.DataDir, "-o", "json")
		if err := json.Unmarshal([]byte(out), &docs); err != nil {
			t.Fatalf("dlq list printed %s: %v", out, err)
		}
		for _, doc := range docs {
			ids, states = append(ids, doc.ID), append(states, strings.TrimSpace(doc.State+" "+doc.Class))
		}
		return ids, states
	}
	await := func(want ...string) (ids []string) {
		system.Eventually(t, decided, fmt.Sprintf("parked messages of %s are %q", user, want), func() error {
			got, states := parked()
			if !slices.Equal(states, want) {
				return fmt.Errorf("they are %q", states)
			}
			ids = got
			return nil
		})
		return ids
	}
	await("dead business_invalid")
	first := d.Place(t, system.OrderOf(user, "pm_ok"))
	second := d.Place(t, system.OrderOf(user, "pm_ok"))
	await("dead business_invalid", "waiting", "waiting")

	other := d.Place(t, system.OrderOf(system.NewUser(), "pm_ok"))
	d.AwaitStatus(t, other.ID, decided, "shipped")
	for _, id := range []string{poisoned, first.ID, second.ID} {
		if o := d.Get(t, id); o.Status != "pending" {
			t.Errorf("order %s is %s behind a dead letter, want pending", id, o.Status)
		}
	}
	copies := records(t, d, 1, []string{"order.dlq"}, user)
	if !strings.Contains(string(copies[0].Value), poisoned) {
		t.Errorf("the copy in order.dlq is %s, want the message as it was", copies[0].Value)
	}

	// As it is, a replay fails again and nothing passes.
	ids, _ := parked()
	d.Binary.MustRun(t, "dlq", "replay", ids[0], "--yes", "--data-dir", d.Ready.DataDir)
	await("dead business_invalid", "waiting", "waiting")

	if _, err := d.DB.Exec(t.Context(), `UPDATE orders.orders SET total = 2750 WHERE id = $1`, poisoned); err != nil {
		t.Fatal(err)
	}
	d.Binary.MustRun(t, "dlq", "replay", "--group", "order", "--key", user, "--yes", "--data-dir", d.Ready.DataDir)
	for _, id := range []string{poisoned, first.ID, second.ID} {
		d.AwaitStatus(t, id, decided, "shipped")
	}
	await()
	if diff := cmp.Diff([]int64{1, 2, 3}, sequences(t, d, "orders.completed", 3, user)[user]); diff != "" {
		t.Errorf("the user's orders completed in another order (-want +got):\n%s", diff)
	}

	// What cannot be mended is discarded, and the next order passes.
	garbage := &kgo.Record{Topic: "orders", Key: []byte(user), Value: []byte("{"), Headers: []kgo.RecordHeader{
		{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "ce_type", Value: []byte("order.placed.v1")},
		{Key: "ce_source", Value: []byte("test")}, {Key: "ce_specversion", Value: []byte("1.0")},
	}}
	if err := system.Kafka(t, d.Ready.Kafka).ProduceSync(t.Context(), garbage).FirstErr(); err != nil {
		t.Fatal(err)
	}
	third := d.Place(t, system.OrderOf(user, "pm_ok"))
	ids = await("dead undecodable", "waiting")
	d.Binary.MustRun(t, "dlq", "discard", ids[0], "--reason", "not ours", "--yes", "--data-dir", d.Ready.DataDir)
	d.AwaitStatus(t, third.ID, decided, "shipped")
	await()
}

// placeDamaged writes an order as the api does, but with a total in its row that is not the one in its message.
func placeDamaged(t *testing.T, d *system.Dev, user string) (id string) {
	t.Helper()
	order, message := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	payload, err := json.Marshal(map[string]any{
		"order_id": order, "user_id": user, "user_seq": 1, "currency": "EUR", "total": 2750, "email": user + "@example.com",
		"payment_method": "pm_ok", "placed_at": time.Now().UTC(),
		"items": []map[string]any{{"sku": "sku-pen", "name": "Brass pen", "quantity": 1, "unit_price": 2750}},
	})
	if err != nil {
		t.Fatal(err)
	}
	// One statement is one transaction: the relay sees all of it or nothing.
	_, err = d.DB.Exec(t.Context(), `
		WITH seq AS (
			INSERT INTO orders.user_sequences (user_id, last_seq) VALUES ($2, 1)
		), o AS (
			INSERT INTO orders.orders (id, user_id, user_seq, status, currency, total, email, payment_method, created_at, updated_at)
			VALUES ($1, $2, 1, 'pending', 'EUR', 1, $2 || '@example.com', 'pm_ok', now(), now())
		), i AS (
			INSERT INTO orders.order_items (order_id, sku, line, name, quantity, unit_price) VALUES ($1, 'sku-pen', 1, 'Brass pen', 1, 2750)
		), h AS (
			INSERT INTO orders.order_history (order_id, version, kind, to_status) VALUES ($1, 1, 'placed', 'pending')
		), k AS (
			INSERT INTO orders.idempotency_keys (user_id, operation, key, request_hash, status, location, body)
			VALUES ($2, 'create order', $1::text, sha256(''), 201, '/v1/orders/' || $1, '')
		)
		INSERT INTO orders.outbox (id, topic, key, type, content_type, payload)
		VALUES ($3, 'orders', $2, 'order.placed.v1', 'application/json', $4)`, order, user, message, payload)
	if err != nil {
		t.Fatal(err)
	}
	return order.String()
}
