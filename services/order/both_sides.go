package order

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
)

// NoSuchIntent is what a provider tells in [Sides] whose look-up does not show the intent; its list may.
const NoSuchIntent = "no such intent"

// Sides is what both sides tell of one order's payment, also where they agree. The refund is the last one that was asked for.
type Sides struct {
	OrderID     uuid.UUID    `json:"order_id"`
	Order       string       `json:"order"` // its status
	IntentID    string       `json:"intent_id"`
	Here        string       `json:"here"`
	There       string       `json:"there"`
	Saga        string       `json:"saga,omitempty"`
	ChargedAt   *time.Time   `json:"charge_sent_at,omitempty"` // when the charge was first sent, or about to be
	RefundID    string       `json:"refund_id,omitempty"`
	RefundState string       `json:"refund_state,omitempty"`
	RefundSaga  string       `json:"refund_saga,omitempty"`
	Differences []Difference `json:"differences"`
}

// BothSides asks both sides about the payment of the order that has an id, or whose refund has it. An intent whose id is not
// known here is looked for by its idempotency key. It changes nothing. It returns [order.ErrNotFound].
func BothSides(ctx context.Context, db order.DB, provider payment.Provider, id uuid.UUID) (Sides, error) {
	rows, _ := db.Query(ctx, selectAccounts+`
		WHERE o.id = $1 OR o.id = (SELECT order_id FROM refunds WHERE id = $1)`, id) // CollectExactlyOneRow reports the error
	a, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[account])
	if errors.Is(err, pgx.ErrNoRows) {
		return Sides{}, fmt.Errorf("order or refund %s: %w", id, order.ErrNotFound)
	}
	if err != nil {
		return Sides{}, fmt.Errorf("read the payment of %s: %w", id, err)
	}
	s := Sides{OrderID: a.OrderID, Here: a.told(), Saga: a.Saga}
	var key string
	rows, _ = db.Query(ctx, `
		SELECT o.status, coalesce(r.id::text, ''), coalesce(r.state, ''), coalesce(s.state, ''),
			coalesce(j.saved ->> 'intent_id', ''), coalesce(j.key, ''), j.intent_at
		FROM orders o
		LEFT JOIN LATERAL (SELECT id, state FROM refunds WHERE order_id = o.id ORDER BY requested_at DESC LIMIT 1) r ON true
		LEFT JOIN saga_instances s ON s.id = r.id
		LEFT JOIN saga_journal j ON j.saga_id = o.id AND j.name = $2 AND NOT j.undo
		WHERE o.id = $1`, a.OrderID, stepCharge)
	_, err = pgx.ForEachRow(rows, []any{
		&s.Order, &s.RefundID, &s.RefundState, &s.RefundSaga, &s.IntentID, &key, &s.ChargedAt,
	}, func() error { return nil })
	if err != nil {
		return Sides{}, fmt.Errorf("read the payment of order %s: %w", a.OrderID, err)
	}
	if a.IntentID != "" {
		s.IntentID = a.IntentID
	}
	r := newReconciler(db, provider)
	if s.IntentID == "" && key != "" {
		asked, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		in, _, err := provider.ByKey(asked, key)
		if err != nil {
			return Sides{}, err
		}
		s.IntentID = in.ID
	}
	if a.IntentID = s.IntentID; a.IntentID == "" && a.Status == "none" {
		s.There = "no intent is known"
	} else if s.There, err = r.lookUp(ctx, a); err != nil {
		return Sides{}, err
	}
	s.Differences = r.found.Differences
	return s, nil
}
