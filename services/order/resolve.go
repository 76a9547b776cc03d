package order

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

// ErrNoCharge is returned by [Charged] when it cannot tell which charge is meant.
var ErrNoCharge = errors.New("no charge is known")

// Charged is what a person says who has seen at the provider that an order was charged: [saga.Resolve] takes it. intentID is
// the provider's id of the charge; empty is right where the order has stored it, and [ErrNoCharge] elsewhere.
func Charged(ctx context.Context, tx pgx.Tx, orderID uuid.UUID, intentID string) (saga.Resolution, error) {
	var c charged
	err := tx.QueryRow(ctx, `
		SELECT coalesce(nullif($3, ''), saved ->> 'intent_id', ''), coalesce(key, '')
		FROM saga_journal
		WHERE saga_id = $1 AND name = $2 AND NOT undo`, orderID, stepCharge, intentID).Scan(&c.IntentID, &c.Key)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return saga.Resolution{}, fmt.Errorf("order %s has not been sent to the provider: %w", orderID, ErrNoCharge)
	case err != nil:
		return saga.Resolution{}, fmt.Errorf("read the charge of order %s: %w", orderID, err)
	case c.IntentID == "":
		return saga.Resolution{}, fmt.Errorf("order %s did not store the provider's id of its charge: %w", orderID, ErrNoCharge)
	}
	result, err := json.Marshal(c)
	if err != nil {
		return saga.Resolution{}, fmt.Errorf("encode the charge of order %s: %w", orderID, err)
	}
	return saga.Resolution{Happened: true, Result: result}, nil
}
