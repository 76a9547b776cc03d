package order

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Refund is a request to pay an order's money back.
type Refund struct {
	ID          uuid.UUID
	OrderID     uuid.UUID
	UserID      string
	Reason      string // a sentence for the user
	RequestedBy string
	RequestedAt time.Time
	// First is true for the request that was noted now, and false for one that repeats it.
	First bool
}

// RequestRefund notes that an order's money is to be paid back, if it was taken. An order is refunded once: a second request
// gets the first one's answer, unless the provider has refused that one. reason is a sentence for the user, by says who asks.
// It returns [ErrNotFound], and [ErrStatus] when the order is neither completed nor shipped.
func RequestRefund(ctx context.Context, tx pgx.Tx, id uuid.UUID, reason, by string) (Refund, error) {
	r := Refund{OrderID: id}
	var status Status
	// Under this lock nobody else can note a refund.
	err := tx.QueryRow(ctx, `SELECT user_id, status FROM orders WHERE id = $1 FOR NO KEY UPDATE`, id).Scan(&r.UserID, &status)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Refund{}, fmt.Errorf("order %s: %w", id, ErrNotFound)
	case err != nil:
		return Refund{}, fmt.Errorf("lock order %s: %w", id, err)
	}
	err = tx.QueryRow(ctx, `
		SELECT id, reason, requested_by, requested_at
		FROM refunds
		WHERE order_id = $1 AND state <> 'refused'`, id).Scan(&r.ID, &r.Reason, &r.RequestedBy, &r.RequestedAt)
	if err == nil {
		r.RequestedAt = r.RequestedAt.UTC()
		return r, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return Refund{}, fmt.Errorf("look for a refund of order %s: %w", id, err)
	}
	if !status.CanBecome(Refunded) {
		return Refund{}, fmt.Errorf("refund order %s, which is %s: %w", id, status, ErrStatus)
	}
	if r.ID, err = uuid.NewV7(); err != nil {
		return Refund{}, fmt.Errorf("mint the refund's id: %w", err)
	}
	r.First, r.Reason, r.RequestedBy = true, reason, by
	err = tx.QueryRow(ctx, `
		INSERT INTO refunds (id, order_id, reason, requested_by) VALUES ($1, $2, $3, $4)
		RETURNING requested_at`, r.ID, id, reason, by).Scan(&r.RequestedAt)
	if err != nil {
		return Refund{}, fmt.Errorf("note the refund of order %s: %w", id, err)
	}
	r.RequestedAt = r.RequestedAt.UTC()
	return r, nil
}
