package email

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/event/eventtest"
)

func TestEachEventQueuesItsEmailOnce(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	order := uuid.Must(uuid.NewV7())
	done := completed("ann")
	done.OrderID = order
	for _, tc := range []struct {
		name, kind string
		event      eventOf
		data       string
	}{
		{
			"a completed order is confirmed", kindConfirmation, done,
			`{"items": [{"name": "A mug", "quantity": 2, "unit_price": 1275}], "total": 2550, "currency": "EUR"}`,
		},
		{
			"a failed order is explained", kindFailure,
			event.OrderFailed{OrderID: order, UserID: "ann", Currency: "EUR", Total: 2550, Email: "ann@example.com", Status: "rejected", Reason: "Out of stock."},
			`{"total": 2550, "reason": "Out of stock.", "status": "rejected", "currency": "EUR"}`,
		},
		{
			"a refund is announced", kindRefund,
			event.OrderRefunded{OrderID: order, UserID: "ann", Currency: "EUR", Total: 2550, Email: "ann@example.com", Reason: "It arrived broken."},
			`{"total": 2550, "reason": "It arrived broken.", "currency": "EUR"}`,
		},
		{
			"a shipment is announced", kindShipped,
			event.ShipmentCreated{OrderID: order, UserID: "ann", Email: "ann@example.com", Items: []event.ShipmentItem{{SKU: "MUG", Name: "A mug", Quantity: 2}}},
			`{"items": [{"name": "A mug", "quantity": 2}]}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			route := routeOf(t, tc.event.Type())
			if route.Topic != tc.event.Topic() || route.Policy != inbox.ReleaseKey {
				t.Errorf("route: got topic %s policy %d, want %s and ReleaseKey", route.Topic, route.Policy, tc.event.Topic())
			}
			// The inbox lets a message through once; this is the wall behind it, for a second message about the same thing.
			for range 2 {
				msg := messageOf(t, tc.event)
				o.tx(t, func(tx pgx.Tx) error { return route.HandleBatch(t.Context(), tx, []inbox.Message{msg, msg}) })
			}
			var data, to, user, messageID string
			err := o.pool.QueryRow(t.Context(), `
				SELECT data::text, to_address, user_id, message_id
				FROM emails
				WHERE order_id = $1 AND kind = $2 AND state = 'queued'`, order, tc.kind).Scan(&data, &to, &user, &messageID)
			if err != nil {
				t.Fatalf("the email: %v", err)
			}
			if data != tc.data || to != "ann@example.com" || user != "ann" || messageID != order.String()+"."+tc.kind+"@orderflow.example" {
				t.Errorf("email: got %s to %s of %s as %s", data, to, user, messageID)
			}
		})
	}
	if n := o.count(t, "true"); n != 4 {
		t.Errorf("emails: got %d, want one of each kind", n)
	}
}

func TestBadEventsAreRefusedWithTheirClass(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	route := routeOf(t, event.OrderCompletedV1)
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
		{"a wrong type", "ann", `{"total":"12"}`, "decode order.completed.v1"},
		{"another user's key", "bob", string(good.Payload), "key is not the payload's"},
		{"null", "ann", `null`, "payload is null"},
		{"no order", "ann", with(func(e *event.OrderCompleted) { e.OrderID = uuid.Nil }), "no order_id"},
		{"no address", "ann", with(func(e *event.OrderCompleted) { e.Email = "" }), "email is not an address"},
		{"an address with a header in it", "ann", with(func(e *event.OrderCompleted) { e.Email = "ann@example.com\r\nBcc: x@example.com" }), "email is not an address"},
		{"an unknown field is accepted", "ann", strings.Replace(string(good.Payload), "{", `{"colour":"red",`, 1), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			msg := good
			msg.ID, msg.Key, msg.Payload = uuid.Must(uuid.NewV7()), tc.key, []byte(tc.payload)
			err := pgx.BeginFunc(t.Context(), o.pool, func(tx pgx.Tx) error {
				return route.HandleBatch(t.Context(), tx, []inbox.Message{msg})
			})
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want it to say %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "@example.com") {
				t.Errorf("the error shows the address: %v", err)
			}
		})
	}
}

// A message may wait in a topic, or parked, until its writer is long gone: a route that gets a new major version must still
// read the ones before.
func TestEveryVersionThatWasEverWrittenIsRead(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	for _, route := range routes(queue{"orderflow.example", stateQueued}) {
		for typ, payload := range eventtest.Versions(t, route.Type) {
			if !slices.Contains(route.Types(), typ) {
				t.Errorf("the route of %s does not read %s: it needs an upcaster", route.Type, typ)
				continue
			}
			msg := inbox.Message{ID: uuid.Must(uuid.NewV7()), Topic: route.Topic, Key: "u-1", Type: typ, Payload: payload}
			err := pgx.BeginFunc(t.Context(), o.pool, func(tx pgx.Tx) error {
				return route.HandleBatch(t.Context(), tx, []inbox.Message{msg})
			})
			if err != nil {
				t.Errorf("%s: got %v, want it handled", typ, err)
			}
		}
	}
}
