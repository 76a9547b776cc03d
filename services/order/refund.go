package order

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/saga"
)

const (
	refundSagaName    = "refund-order"
	refundSagaVersion = 1
	stepRefund        = "refund payment"
)

// refundDefinition pays the money of a completed order back. The money is the pivot: once it is back, the order says so.
func refundDefinition(p *payments) *saga.Definition {
	return saga.Define(refundSagaName, refundSagaVersion,
		saga.Remote(stepRefund, p.payBack).Query(p.findRefund).Record(recordRefund).Timeout(callTimeout).Pivot(),
		saga.Local("tell of the refund", refunded),
	).OnFailed(refundRefused)
}

// refunding is what the saga knows of a refund, whose id it has.
type refunding struct {
	OrderID  uuid.UUID `json:"order_id"`
	IntentID string    `json:"intent_id"`
	Total    int64     `json:"total"` // minor units
	Currency string    `json:"currency"`
	Reason   string    `json:"reason"`
}

// paidBack is the step's result.
type paidBack struct {
	RefundID string `json:"refund_id"`
}

// reasonNotCharged refuses a refund: who passed over the charge has to pay back what was paid elsewhere.
const reasonNotCharged = "nothing was charged through the payment provider"

// startRefund starts the saga of a refund that was accepted, or refuses it where there is no charge to pay back. The decision is
// in the refund's row, so a message without one there is none of ours.
func startRefund(ctx context.Context, tx pgx.Tx, requested inbox.Event[event.OrderRefundRequested]) error {
	e := requested.Data
	data := refunding{OrderID: e.OrderID}
	var userID string
	err := tx.QueryRow(ctx, `
		SELECT o.user_id, r.reason, coalesce(p.intent_id, ''), coalesce(p.amount, 0), coalesce(p.currency, '')
		FROM refunds r
		JOIN orders o ON o.id = r.order_id
		LEFT JOIN payments p ON p.order_id = r.order_id
		WHERE r.id = $1 AND r.order_id = $2`, e.RefundID, e.OrderID).
		Scan(&userID, &data.Reason, &data.IntentID, &data.Total, &data.Currency)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return unknown(e.OrderID)
	case err != nil:
		return fmt.Errorf("load the refund of order %s: %w", e.OrderID, err)
	case userID != e.UserID:
		return inbox.PermanentAs(classInvalid, fmt.Errorf("the refund of order %s is another user's", e.OrderID))
	case data.IntentID == "":
		return refuseRefund(ctx, tx, e.RefundID, reasonNotCharged)
	}
	return saga.Start(ctx, tx, saga.NewInstance{
		ID: e.RefundID, Lane: userID, Definition: refundSagaName, Version: refundSagaVersion, Data: data,
	})
}

func (p *payments) payBack(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
	var r refunding
	if err := in.Decode(&r); err != nil {
		return nil, err
	}
	id, err := p.provider.Refund(ctx, call.Key, r.IntentID)
	if err == nil {
		return paidBack{id}, nil
	}
	return nil, notPaidBack(err)
}

// findRefund settles a refund whose answer did not come: the intent shows it.
func (p *payments) findRefund(ctx context.Context, in *saga.Instance, _ *saga.Call) (saga.Answer, error) {
	var r refunding
	if err := in.Decode(&r); err != nil {
		return saga.Answer{}, err
	}
	got, ok, err := p.provider.ByID(ctx, r.IntentID)
	if err != nil || !ok || got.Refund == "" {
		return saga.NotYet(), err
	}
	want := payment.Intent{Amount: r.Total, Currency: r.Currency, Reference: r.OrderID.String()}
	return saga.FoundSucceeded(paidBack{got.Refund}), matches(got, want)
}

// recordRefund notes a refund in the transaction that journals it.
func recordRefund(ctx context.Context, tx pgx.Tx, in *saga.Instance, result json.RawMessage) error {
	var r refunding
	var back paidBack
	if err := errors.Join(in.Decode(&r), json.Unmarshal(result, &back)); err != nil {
		return saga.Stuck(fmt.Errorf("decode refund %s: %w", in.ID, err))
	}
	return noteRefund(ctx, tx, in.ID, r.OrderID, back.RefundID)
}

// noteRefund notes that the money is back, unless that is known already. refundID is the provider's, if it is known.
func noteRefund(ctx context.Context, tx pgx.Tx, id, orderID uuid.UUID, refundID string) error {
	_, err := tx.Exec(ctx, `
		WITH paid AS (
			UPDATE refunds SET state = 'paid', ended_at = clock_timestamp() WHERE id = $1 AND state = 'requested'
		)
		UPDATE payments SET status = 'refunded', refund_id = nullif($3, ''), updated_at = clock_timestamp()
		WHERE order_id = $2 AND status = 'charged'`, id, orderID, refundID)
	if err != nil {
		return fmt.Errorf("note the refund of order %s: %w", orderID, err)
	}
	return nil
}

// refunded ends an order whose money is back, and tells of it.
func refunded(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	var r refunding
	if err := in.Decode(&r); err != nil {
		return err
	}
	// Nothing to note, unless a person has refunded by hand and passed over the step.
	if err := noteRefund(ctx, tx, in.ID, r.OrderID, ""); err != nil {
		return err
	}
	var status order.Status
	// The warehouse may be handing the order over at this moment; then it waits here, or this does.
	err := tx.QueryRow(ctx, `SELECT status FROM orders WHERE id = $1 FOR NO KEY UPDATE`, r.OrderID).Scan(&status)
	if err != nil {
		return fmt.Errorf("lock order %s: %w", r.OrderID, err)
	}
	err = order.SetStatus(ctx, tx, r.OrderID, status, order.Refunded, r.Reason)
	if errors.Is(err, order.ErrStatus) {
		return saga.Stuck(err)
	}
	if err != nil {
		return err
	}
	o, err := order.ByID(ctx, tx, r.OrderID)
	if err != nil {
		return err
	}
	message, err := outbox.JSON(event.OrderRefunded{
		OrderID: o.ID, UserID: o.UserID, UserSeq: o.UserSeq, Currency: o.Currency, Total: o.Total, Email: o.Email,
		Reason: o.Reason, RefundedAt: o.UpdatedAt,
	})
	if err != nil {
		return err
	}
	return outbox.Write(ctx, tx, message)
}

// refundRefused notes that the provider keeps the money. The order stays as it is, and a refund may be asked for again.
func refundRefused(ctx context.Context, tx pgx.Tx, in *saga.Instance, cause saga.Failure) error {
	return refuseRefund(ctx, tx, in.ID, cause.Reason)
}

func refuseRefund(ctx context.Context, tx pgx.Tx, id uuid.UUID, reason string) error {
	_, err := tx.Exec(ctx, `
		UPDATE refunds SET state = 'refused', refusal = $2, ended_at = clock_timestamp() WHERE id = $1`, id, reason)
	if err != nil {
		return fmt.Errorf("note that refund %s was refused: %w", id, err)
	}
	return nil
}

// PaidBack is what a person says who has seen at the provider that a refund was made: [saga.Resolve] takes it. id is the
// refund's, refundID the provider's. It returns [ErrNoCharge] when the saga is not one of a refund that was sent.
func PaidBack(ctx context.Context, tx pgx.Tx, id uuid.UUID, refundID string) (saga.Resolution, error) {
	var sent bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM saga_journal WHERE saga_id = $1 AND name = $2 AND NOT undo)`, id, stepRefund).Scan(&sent)
	if err != nil {
		return saga.Resolution{}, fmt.Errorf("look for refund %s: %w", id, err)
	}
	if !sent {
		return saga.Resolution{}, fmt.Errorf("saga %s has sent no refund: %w", id, ErrNoCharge)
	}
	result, err := json.Marshal(paidBack{refundID})
	if err != nil {
		return saga.Resolution{}, fmt.Errorf("encode refund %s: %w", refundID, err)
	}
	return saga.Resolution{Happened: true, Result: result}, nil
}
