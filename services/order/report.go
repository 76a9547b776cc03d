package order

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/saga"
)

// reported takes what the payment provider said by itself for one more answer to the charge, or to the refund, that it is
// about. It may be early, late or behind another: what it changes is for package saga to say.
func reported(ctx context.Context, tx pgx.Tx, said inbox.Event[event.PaymentReported]) error {
	e := said.Data
	o, err := order.ByID(ctx, tx, e.OrderID)
	switch {
	case errors.Is(err, order.ErrNotFound):
		return unknown(e.OrderID)
	case err != nil:
		return err
	case o.UserID != e.UserID || o.Total != e.Amount || o.Currency != e.Currency:
		return inbox.PermanentAs(classInvalid, fmt.Errorf("payment intent %s of order %s is over %d %s of user %s, want %d %s of user %s",
			e.IntentID, o.ID, e.Amount, e.Currency, e.UserID, o.Total, o.Currency, o.UserID))
	}
	sent, err := sentCharge(ctx, tx, e.OrderID)
	switch {
	case err != nil:
		return err
	case sent.Key == "":
		return inbox.Discard("order " + e.OrderID.String() + " has not sent a charge")
	case sent.IntentID != "" && sent.IntentID != e.IntentID:
		return anotherIntent(e, sent)
	case e.RefundID != "":
		return settleRefund(ctx, tx, e)
	}
	return settleCharge(ctx, tx, o, e, sent)
}

// sentCharge returns the charge that an order has sent: its key, and the intent's id if that was stored. Without a charge the
// key is "".
func sentCharge(ctx context.Context, tx pgx.Tx, orderID uuid.UUID) (sent charged, err error) {
	err = tx.QueryRow(ctx, `
		SELECT coalesce(saved ->> 'intent_id', ''), key
		FROM saga_journal
		WHERE saga_id = $1 AND name = $2 AND NOT undo AND key IS NOT NULL`, orderID, stepCharge).Scan(&sent.IntentID, &sent.Key)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return sent, fmt.Errorf("read the charge of order %s: %w", orderID, err)
	}
	return sent, nil
}

// anotherIntent is about an intent of our order that its saga did not make. One that moved no money is left behind; one that did
// is a second charge, which a person has to look at.
func anotherIntent(e event.PaymentReported, sent charged) error {
	if payment.Status(e.Status) != payment.Succeeded || e.RefundID != "" {
		return inbox.Discard("order " + e.OrderID.String() + " is paid by another intent")
	}
	return inbox.PermanentAs(classInvalid, fmt.Errorf("order %s was charged by payment intent %s, and its own is %s", e.OrderID, e.IntentID, sent.IntentID))
}

func settleCharge(ctx context.Context, tx pgx.Tx, o order.Order, e event.PaymentReported, sent charged) error {
	var final fate
	switch payment.Status(e.Status) {
	case payment.Succeeded:
		return saga.Settle(ctx, tx, o.ID, stepCharge, saga.FoundSucceeded(charged{e.IntentID, sent.Key}))
	case payment.Declined:
		final = fate{intentID: e.IntentID, status: "declined", reason: reasonDeclined}
	case payment.Canceled:
		final = fate{intentID: e.IntentID, status: "cancelled", reason: reasonNoAnswer}
	default:
		return nil // still on its way
	}
	if err := saga.Settle(ctx, tx, o.ID, stepCharge, saga.FoundRejected(final.reason)); err != nil {
		return err
	}
	// The answer was taken if it waits for the engine. Else the step is settled, and its payment is noted.
	var taken bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM saga_journal WHERE saga_id = $1 AND name = $2 AND NOT undo AND answer IS NOT NULL)`,
		o.ID, stepCharge).Scan(&taken)
	if err != nil {
		return fmt.Errorf("read the charge of order %s: %w", o.ID, err)
	}
	if !taken {
		return nil
	}
	return noteFate(ctx, tx, o.ID, payment.Intent{Amount: o.Total, Currency: o.Currency}, sent.Key, final)
}

// settleRefund tells the saga of a refund that was asked for. The refund of an order that failed is in no need of it, and one
// that somebody made at the provider shows when the payments are compared.
func settleRefund(ctx context.Context, tx pgx.Tx, e event.PaymentReported) error {
	var id uuid.UUID
	err := tx.QueryRow(ctx, `SELECT id FROM refunds WHERE order_id = $1 AND state = 'requested'`, e.OrderID).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the refund of order %s: %w", e.OrderID, err)
	}
	err = saga.Settle(ctx, tx, id, stepRefund, saga.FoundSucceeded(paidBack{e.RefundID}))
	if errors.Is(err, saga.ErrNotFound) {
		return nil // not sent yet: whoever made this refund, the saga will find it
	}
	return err
}
