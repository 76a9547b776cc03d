package email

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
)

// The kinds of email. There is one of each for an order at most.
const (
	kindConfirmation = "confirmation"
	kindFailure      = "failure"
	kindShipped      = "shipped"
	kindRefund       = "refund"
)

// classInvalid is the class of events that are readable and wrong.
const classInvalid = "business_invalid"

// content is what a template shows. It is stored with the email, so what an email says is decided when its event happens
// and not when a slow provider takes it.
type content struct {
	Currency string `json:"currency,omitempty"`
	Total    int64  `json:"total,omitempty"` // minor units
	Items    []item `json:"items,omitempty"`
	Status   string `json:"status,omitempty"` // of a failed order
	Reason   string `json:"reason,omitempty"`
}

type item struct {
	Name      string `json:"name"`
	Quantity  int64  `json:"quantity"`
	UnitPrice int64  `json:"unit_price,omitempty"`
}

// request is an email that an event asks for.
type request struct {
	orderID uuid.UUID
	userID  string
	kind    string
	to      string
	content content
}

// queue is how emails are inserted.
type queue struct {
	domain string // of their Message-IDs
	// state is queued; or sending, for emails that were perhaps sent before their rows were lost: nobody holds their lease,
	// so the sender asks about them.
	state string
}

// routes returns the handlers of the events that users are told of. An email needs no order: one that nobody can make sense
// of lets the user's others pass.
func routes(q queue) []inbox.Route {
	return []inbox.Route{
		route(q, event.OrderCompletedV1, func(e event.OrderCompleted) request {
			c := content{Currency: e.Currency, Total: e.Total}
			for _, i := range e.Items {
				c.Items = append(c.Items, item{Name: i.Name, Quantity: i.Quantity, UnitPrice: i.UnitPrice})
			}
			return request{e.OrderID, e.UserID, kindConfirmation, e.Email, c}
		}),
		route(q, event.OrderFailedV1, func(e event.OrderFailed) request {
			c := content{Currency: e.Currency, Total: e.Total, Status: e.Status, Reason: e.Reason}
			return request{e.OrderID, e.UserID, kindFailure, e.Email, c}
		}),
		route(q, event.OrderRefundedV1, func(e event.OrderRefunded) request {
			c := content{Currency: e.Currency, Total: e.Total, Reason: e.Reason}
			return request{e.OrderID, e.UserID, kindRefund, e.Email, c}
		}),
		route(q, event.ShipmentCreatedV1, func(e event.ShipmentCreated) request {
			var c content
			for _, i := range e.Items {
				c.Items = append(c.Items, item{Name: i.Name, Quantity: i.Quantity})
			}
			return request{e.OrderID, e.UserID, kindShipped, e.Email, c}
		}),
	}
}

// route returns the route of the events of type E, which ask for the email that is made of them.
func route[E interface{ Topic() string }](q queue, eventType string, ask func(E) request) inbox.Route {
	var e E
	r := inbox.TypedBatch(e.Topic(), eventType, func(ctx context.Context, tx pgx.Tx, events []inbox.Event[E]) error {
		return enqueue(ctx, tx, q, events, ask)
	})
	r.Policy = inbox.ReleaseKey
	return r
}

// enqueue inserts the emails that events ask for.
func enqueue[E any](ctx context.Context, tx pgx.Tx, q queue, events []inbox.Event[E], ask func(E) request) error {
	var (
		ids, orders                              []uuid.UUID
		users, kinds, addresses, data, messageID []string
	)
	// Sorted: two consumers that insert the same orders' emails in different orders would deadlock.
	events = slices.SortedFunc(slices.Values(events), func(a, b inbox.Event[E]) int { return strings.Compare(a.Subject, b.Subject) })
	for _, e := range events {
		r := ask(e.Data)
		if err := r.check(); err != nil {
			return inbox.PermanentAs(classInvalid, fmt.Errorf("%s %s: %w", e.Type, e.ID, err))
		}
		shown, err := json.Marshal(r.content)
		if err != nil {
			return inbox.Permanent(fmt.Errorf("encode the content of an email: %w", err))
		}
		ids, orders, users = append(ids, e.ID), append(orders, r.orderID), append(users, r.userID)
		kinds, addresses, data = append(kinds, r.kind), append(addresses, r.to), append(data, string(shown))
		messageID = append(messageID, r.orderID.String()+"."+r.kind+"@"+q.domain)
	}
	// An email is known by the event that asked for it. A second event about the same order and kind asks for nothing.
	_, err := tx.Exec(ctx, `
		INSERT INTO emails (id, order_id, user_id, kind, to_address, data, message_id, state, lease_token)
		SELECT e.*, $8::text, CASE WHEN $8::text = 'sending' THEN gen_random_uuid() END
		FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::text[]) AS e
		ON CONFLICT DO NOTHING`, ids, orders, users, kinds, addresses, data, messageID, q.state)
	if err != nil {
		return fmt.Errorf("queue emails: %w", err)
	}
	return nil
}

func (r request) check() error {
	if r.orderID == uuid.Nil {
		return errors.New("there is no order_id")
	}
	// The error of the parser would show the address.
	if _, err := mail.ParseAddress(r.to); err != nil {
		return errors.New("email is not an address")
	}
	return nil
}
