package warehouse

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/event/eventtest"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// hall is a warehouse's database.
type hall struct {
	*pgtest.DB
	pool *pgxpool.Pool // as the service's role
}

func newHall(t *testing.T) *hall {
	t.Helper()
	db := migrated.New(t)
	return &hall{db, db.RolePool("warehouse")}
}

func completed(user string, items ...event.Item) event.OrderCompleted {
	if items == nil {
		items = []event.Item{{SKU: "MUG", Name: "A mug", Quantity: 2, UnitPrice: 1275}}
	}
	return event.OrderCompleted{
		OrderID: uuid.Must(uuid.NewV7()), UserID: user, UserSeq: 1, Currency: "EUR", Total: 2550, Email: user + "@example.com",
		Items: items, CompletedAt: time.Now().UTC(),
	}
}

func messageOf(t *testing.T, e event.OrderCompleted) inbox.Message {
	t.Helper()
	payload, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return inbox.Message{ID: uuid.Must(uuid.NewV7()), Topic: e.Topic(), Key: e.Key(), Type: e.Type(), Subject: e.Subject(), Payload: payload}
}

func recordOf(m inbox.Message) *kgo.Record {
	return &kgo.Record{Topic: m.Topic, Key: []byte(m.Key), Value: m.Payload, Headers: []kgo.RecordHeader{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(m.ID.String())},
		{Key: "ce_type", Value: []byte(m.Type)},
		{Key: "ce_source", Value: []byte("test")},
	}}
}

func (h *hall) ship(ctx context.Context, msgs ...inbox.Message) error {
	return pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error { return routes()[0].HandleBatch(ctx, tx, msgs) })
}

func (h *hall) count(t *testing.T, query string, args ...any) int {
	t.Helper()
	var n int
	if err := h.Pool.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// published returns the shipments in the outbox, in the order of their publication.
func (h *hall) published(t *testing.T) []event.ShipmentCreated {
	t.Helper()
	rows, _ := h.Pool.Query(t.Context(), `
		SELECT payload
		FROM warehouse.outbox
		WHERE topic = 'shipments' AND type = 'shipment.created.v1'
		ORDER BY seq`)
	payloads, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	events := make([]event.ShipmentCreated, len(payloads))
	for i, p := range payloads {
		if err := json.Unmarshal(p, &events[i]); err != nil {
			t.Fatal(err)
		}
	}
	return events
}

// run runs the service until the test ends.
func (h *hall) run(t *testing.T, broker *kafkatest.Broker) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, slog.New(slog.DiscardHandler), Config{
			DatabaseURL: h.RoleURL("warehouse"), Brokers: broker.Addrs, OpsAddr: "127.0.0.1:0",
		})
	}()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil after its context ended", err)
		}
	})
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("%s: not within a minute", what)
		case <-tick.C:
		}
	}
}

func TestACompletedOrderBecomesAShipmentWithItsPickListAndItsEvent(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	order := completed("ann",
		event.Item{SKU: "POSTER", Name: "A poster", Quantity: 1}, event.Item{SKU: "MUG", Name: "A mug", Quantity: 2},
		event.Item{SKU: "BAG", Name: "A bag", Quantity: 3})
	if err := h.ship(t.Context(), messageOf(t, order)); err != nil {
		t.Fatal(err)
	}
	events := h.published(t)
	if len(events) != 1 {
		t.Fatalf("published shipments: got %d, want 1", len(events))
	}
	got := events[0]
	want := event.ShipmentCreated{
		ShipmentID: got.ShipmentID, OrderID: order.OrderID, UserID: "ann", Email: "ann@example.com", ShippedAt: got.ShippedAt,
		Items: []event.ShipmentItem{{SKU: "POSTER", Name: "A poster", Quantity: 1}, {SKU: "MUG", Name: "A mug", Quantity: 2}, {SKU: "BAG", Name: "A bag", Quantity: 3}},
	}
	if diff := cmp.Diff(want, got); diff != "" || got.ShippedAt.IsZero() {
		t.Errorf("published shipment, shipped at %v: (-want +got)\n%s", got.ShippedAt, diff)
	}
	if n := h.count(t, `SELECT count(*) FROM warehouse.shipments WHERE id = $1 AND order_id = $2 AND user_id = 'ann' AND state = 'shipped'`, got.ShipmentID, order.OrderID); n != 1 {
		t.Errorf("shipments: got %d, want the published one", n)
	}
	rows, _ := h.pool.Query(t.Context(), `
		SELECT format('%s %s %s %s x%s', line, bin, sku, name, quantity)
		FROM shipment_items
		WHERE shipment_id = $1 AND picked = quantity
		ORDER BY line`, got.ShipmentID)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1 A-11 MUG A mug x2", "2 B-03 BAG A bag x3", "3 E-28 POSTER A poster x1"}, lines); diff != "" {
		t.Errorf("pick list: (-want +got)\n%s", diff)
	}
}

func TestAPickListIsSortedByBinThenSKU(t *testing.T) {
	t.Parallel()
	var items []event.ShipmentItem
	for i := range 400 {
		items = append(items, event.ShipmentItem{SKU: fmt.Sprintf("SKU-%d", i), Quantity: 1})
	}
	bins := map[string]bool{}
	lines := pickList(items)
	for i, l := range lines {
		bins[l.bin] = true
		if l.bin != binOf(l.SKU) {
			t.Errorf("line %d: got bin %s for %s, want %s", i, l.bin, l.SKU, binOf(l.SKU))
		}
		if i > 0 && (lines[i-1].bin > l.bin || lines[i-1].bin == l.bin && lines[i-1].SKU >= l.SKU) {
			t.Errorf("line %d: %s %s comes behind %s %s", i, l.bin, l.SKU, lines[i-1].bin, lines[i-1].SKU)
		}
	}
	if len(lines) != len(items) || len(bins) < 100 {
		t.Errorf("got %d lines in %d bins, want all %d lines, spread", len(lines), len(bins), len(items))
	}
}

// The second wall: another event about an order, which the inbox cannot know as a duplicate.
func TestAnOrderIsShippedOnceWhateverTellsOfIt(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	order := completed("ann")
	batch := []inbox.Message{messageOf(t, order), messageOf(t, completed("bob")), messageOf(t, order)}
	for range 2 {
		if err := h.ship(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
	}
	if s, i, p := h.count(t, `SELECT count(*) FROM warehouse.shipments`), h.count(t, `SELECT count(*) FROM warehouse.shipment_items`), len(h.published(t)); s != 2 || i != 2 || p != 2 {
		t.Errorf("got %d shipments, %d lines, %d events, want 2 of each", s, i, p)
	}
}

func TestAUsersShipmentsArePublishedInTheOrderOfTheirOrders(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	var msgs []inbox.Message
	var want []uuid.UUID
	for range 50 {
		e := completed("ann")
		e.OrderID = uuid.New() // random: neither the ids nor the table give the order
		msgs, want = append(msgs, messageOf(t, e)), append(want, e.OrderID)
	}
	if err := h.ship(t.Context(), msgs...); err != nil {
		t.Fatal(err)
	}
	var got []uuid.UUID
	for _, s := range h.published(t) {
		got = append(got, s.OrderID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("published orders: (-want +got)\n%s", diff)
	}
}

func TestBadEventsShipNothing(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	good := messageOf(t, completed("ann"))
	with := func(change func(*event.OrderCompleted)) string {
		e := completed("ann")
		change(&e)
		return string(messageOf(t, e).Payload)
	}
	for _, tc := range []struct {
		name, key, payload string
		says               string
	}{
		{"not JSON", "ann", `{"order_id":`, "decode order.completed.v1"},
		{"another user's key", "bob", string(good.Payload), "key is not the payload's"},
		{"null", "ann", `null`, "payload is null"},
		{"no order", "ann", with(func(e *event.OrderCompleted) { e.OrderID = uuid.Nil }), "no order_id"},
		{"no items", "ann", with(func(e *event.OrderCompleted) { e.Items = nil }), "no items"},
		{"no quantity", "ann", with(func(e *event.OrderCompleted) { e.Items[0].Quantity = 0 }), "item 0"},
		{"an unknown field is accepted", "ann", strings.Replace(string(good.Payload), "{", `{"colour":"red",`, 1), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			msg := good
			msg.ID, msg.Key, msg.Payload = uuid.Must(uuid.NewV7()), tc.key, []byte(tc.payload)
			err := h.ship(t.Context(), msg)
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want it to say %q", err, tc.says)
			}
		})
	}
	if n := h.count(t, `SELECT count(*) FROM warehouse.shipments`); n != 1 {
		t.Errorf("shipments: got %d, want that of the accepted event only", n)
	}
}

// F21, I18: each record ten times, shuffled, in two consumers at once.
// A refund comes behind its order's completion, in the same topic: it finds no shipment only if that was given up.
func TestARefundCancelsAShipmentThatWasNeverMade(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	shipped, never := completed("ann", event.Item{SKU: "pen", Name: "Pen", Quantity: 1}), completed("bob", event.Item{SKU: "pen", Name: "Pen", Quantity: 1})
	if err := h.ship(t.Context(), messageOf(t, shipped)); err != nil {
		t.Fatal(err)
	}
	var refunds []inbox.Message
	for _, e := range []event.OrderCompleted{shipped, never, never} {
		payload, err := json.Marshal(event.OrderRefunded{OrderID: e.OrderID, UserID: e.UserID})
		if err != nil {
			t.Fatal(err)
		}
		refunds = append(refunds, inbox.Message{ID: uuid.Must(uuid.NewV7()), Key: e.UserID, Type: event.OrderRefundedV1, Payload: payload})
	}
	if err := pgx.BeginFunc(t.Context(), h.pool, func(tx pgx.Tx) error { return routes()[1].HandleBatch(t.Context(), tx, refunds) }); err != nil {
		t.Fatal(err)
	}
	for order, state := range map[uuid.UUID]string{shipped.OrderID: "shipped", never.OrderID: "cancelled"} {
		if n := h.count(t, `SELECT count(*) FROM warehouse.shipments WHERE order_id = $1 AND state = $2`, order, state); n != 1 {
			t.Errorf("%d shipments are %s, want 1", n, state)
		}
	}
	if n := h.count(t, `SELECT count(*) FROM warehouse.outbox WHERE type = 'shipment.cancelled.v1' AND key = 'bob'`); n != 1 {
		t.Errorf("%d messages tell of the cancelled shipment, want 1", n)
	}
	if err := h.ship(t.Context(), messageOf(t, never)); err != nil {
		t.Fatal(err)
	}
	if n := len(h.published(t)); n != 1 {
		t.Errorf("%d shipments after the completion of a refunded order came late, want the first one only", n)
	}
}

func TestADuplicatesStormShipsEachOrderOnce(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	broker := kafkatest.New(t, event.Topics()...)
	var records []*kgo.Record
	const orders = 60
	for i := range orders {
		m := messageOf(t, completed(fmt.Sprintf("user-%d", i%20)))
		for range 10 {
			records = append(records, recordOf(m))
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	broker.Produce(t, records[:300]...)
	h.run(t, broker)
	h.run(t, broker)
	broker.Produce(t, records[300:]...)
	waitFor(t, "every order to be shipped", func() bool { return h.count(t, `SELECT count(*) FROM warehouse.shipments`) == orders })
	client := broker.Client(t)
	waitFor(t, "the duplicates behind them to be read", func() bool {
		g, err := kafka.Describe(t.Context(), client, event.GroupWarehouse)
		lag, known := g.Lag()
		return err == nil && known && lag == 0
	})
	if s, i, p := h.count(t, `SELECT count(*) FROM warehouse.shipments`), h.count(t, `SELECT count(*) FROM warehouse.shipment_items`), len(h.published(t)); s != orders || i != orders || p != orders {
		t.Errorf("got %d shipments, %d lines, %d events, want %d of each", s, i, p, orders)
	}
}

// F19: poison parks its own key only; replayed after it was fixed, or discarded, the key goes on in order.
func TestPoisonHoldsItsOwnKeyOnly(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	broker := kafkatest.New(t, event.Topics()...)
	poison := messageOf(t, completed("ann"))
	poison.Payload = []byte(`{"order_id":`)
	behind := []event.OrderCompleted{completed("ann"), completed("ann")}
	records := []*kgo.Record{recordOf(poison), recordOf(messageOf(t, behind[0])), recordOf(messageOf(t, behind[1]))}
	for i := range 30 {
		records = append(records, recordOf(messageOf(t, completed(fmt.Sprintf("user-%d", i)))))
	}
	broker.Produce(t, records...)
	h.run(t, broker)
	waitFor(t, "the others to be shipped", func() bool { return h.count(t, `SELECT count(*) FROM warehouse.shipments`) == 30 })
	var parked []inbox.Parked
	waitFor(t, "ann's messages to be parked", func() bool {
		var err error
		if parked, err = inbox.ListParked(t.Context(), h.pool, inbox.Filter{Group: event.GroupWarehouse}); err != nil {
			t.Fatal(err)
		}
		return len(parked) == 3
	})
	if head := parked[0]; head.State != inbox.StateDead || head.Class != inbox.ClassUndecodable || head.Key != "ann" {
		t.Errorf("head of the held key: got %s %s of %s, want dead undecodable of ann", head.State, head.Class, head.Key)
	}
	if n := h.count(t, `SELECT count(*) FROM warehouse.outbox WHERE topic = 'warehouse.dlq'`); n != 1 {
		t.Errorf("copies in the dead-letter topic's outbox: got %d, want 1", n)
	}
	if err := inbox.DiscardParked(t.Context(), h.pool, parked[0], "cannot be read", "test"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "what waited behind it to be shipped", func() bool { return h.count(t, `SELECT count(*) FROM warehouse.shipments`) == 32 })
	var anns []uuid.UUID
	for _, s := range h.published(t) {
		if s.UserID == "ann" {
			anns = append(anns, s.OrderID)
		}
	}
	if diff := cmp.Diff([]uuid.UUID{behind[0].OrderID, behind[1].OrderID}, anns); diff != "" {
		t.Errorf("ann's shipments: (-want +got)\n%s", diff)
	}
}

// A message may wait in a topic, or parked, until its writer is long gone: a route that gets a new major version must still
// read the ones before.
func TestEveryVersionThatWasEverWrittenIsRead(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	for _, route := range routes() {
		for typ, payload := range eventtest.Versions(t, route.Type) {
			if !slices.Contains(route.Types(), typ) {
				t.Errorf("the route of %s does not read %s: it needs an upcaster", route.Type, typ)
				continue
			}
			msg := inbox.Message{ID: uuid.Must(uuid.NewV7()), Topic: route.Topic, Key: "u-1", Type: typ, Payload: payload}
			err := pgx.BeginFunc(t.Context(), h.pool, func(tx pgx.Tx) error {
				return route.HandleBatch(t.Context(), tx, []inbox.Message{msg})
			})
			if err != nil {
				t.Errorf("%s: got %v, want it handled", typ, err)
			}
		}
	}
}
