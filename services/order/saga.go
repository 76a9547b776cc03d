package order

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/saga"
)

const (
	sagaName    = "place-order"
	sagaVersion = 1

	// callTimeout bounds a charge, a look-up and a refund. Three that go unanswered, and the order has failed in some ten
	// seconds.
	callTimeout = 2 * time.Second
	// deadline bounds how long an order can hold its stock while its payment cannot be settled.
	deadline = 30 * time.Minute

	stepCharge = "charge payment"
)

// Reasons are sentences for the user, without a full stop.
const (
	reasonDeclined  = "the payment was declined"
	reasonNoAnswer  = "the payment provider did not answer, and nothing was charged"
	reasonCancelled = "cancelled as you asked"
	reasonReleased  = "the reservation was released before it was made"
	reasonDeadline  = "the order took too long, and nothing was charged"
	reasonLateBack  = "the order took too long, and the payment was refunded"
	reasonOperator  = "the order was stopped"
)

// definition is the life of an order.
func definition(p *payments) *saga.Definition {
	return saga.Define(sagaName, sagaVersion,
		saga.LocalBatch("validate", validate),
		saga.LocalBatch("reserve stock", reserve).UndoBatch(release),
		saga.Remote(stepCharge, p.charge).Query(p.find).Undo(p.undo).Record(p.record).Timeout(callTimeout),
		saga.LocalBatch("complete order", complete).Pivot(), // writes orders.completed with the status
	).Deadline(deadline).OnFailed(failed)
}

// placed is what the saga knows of an order: what it reserves and what it charges. The saga has the order's id; its lane is
// the user's.
type placed struct {
	Currency      string `json:"currency"`
	Total         int64  `json:"total"` // minor units
	PaymentMethod string `json:"payment_method"`
	Lines         []line `json:"lines"`
}

type line struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// start returns the saga of an order.
func start(e event.OrderPlaced) saga.NewInstance {
	o := placed{Currency: e.Currency, Total: e.Total, PaymentMethod: e.PaymentMethod}
	for _, item := range e.Items {
		o.Lines = append(o.Lines, line{item.SKU, item.Quantity})
	}
	return saga.NewInstance{ID: e.OrderID, Lane: e.UserID, Definition: sagaName, Version: sagaVersion, Data: o}
}

// validate checks each order against its row and the catalog, before anything is done for it.
func validate(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	orders, err := byID(ctx, tx, in)
	if err != nil {
		return nil, err
	}
	var skus []string
	for _, o := range orders {
		for _, item := range o.Items {
			skus = append(skus, item.SKU)
		}
	}
	catalog, err := order.Prices(ctx, tx, skus)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(in))
	for i, instance := range in {
		var want placed
		if errs[i] = instance.Decode(&want); errs[i] != nil {
			continue
		}
		o, ok := orders[instance.ID]
		switch {
		case !ok:
			errs[i] = saga.Stuck(fmt.Errorf("order %s: %w", instance.ID, order.ErrNotFound))
		case o.CancelRequestedAt != nil:
			errs[i] = saga.Rejected(reasonCancelled)
		default:
			errs[i] = check(o, want, catalog)
		}
	}
	return errs, nil
}

// check says what is wrong with an order.
func check(o order.Order, want placed, catalog map[string]order.Product) error {
	if o.Total != want.Total || o.Currency != want.Currency || len(o.Items) != len(want.Lines) {
		return saga.Stuck(fmt.Errorf("order %s is over %d %s, its saga over %d %s", o.ID, o.Total, o.Currency, want.Total, want.Currency))
	}
	var total int64
	for _, item := range o.Items {
		p, ok := catalog[item.SKU]
		if !ok {
			return saga.Rejected("no longer sold: " + item.SKU)
		}
		if p.Currency != o.Currency {
			return saga.Rejected("not sold in " + o.Currency + ": " + item.SKU)
		}
		total += item.Quantity * item.UnitPrice
	}
	if total != o.Total {
		return saga.Rejected("the total is not the sum of the items")
	}
	return nil
}

// complete is the pivot: from here on the order is shipped. An order whose cancel was accepted does not get past it.
func complete(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	changes := make([]order.Change, len(in))
	for i, instance := range in {
		changes[i] = order.Change{ID: instance.ID, From: order.Pending, To: order.Completed}
	}
	errs, err := order.SetStatuses(ctx, tx, changes)
	if err != nil {
		return nil, err
	}
	orders, err := byID(ctx, tx, in)
	if err != nil {
		return nil, err
	}
	var messages []outbox.Message
	for i, instance := range in {
		switch {
		case errors.Is(errs[i], order.ErrCancelRequested):
			errs[i] = saga.Rejected(reasonCancelled)
			continue
		case errs[i] != nil: // somebody else changed the order of a saga that is under way
			errs[i] = saga.Stuck(errs[i])
			continue
		}
		message, err := outbox.JSON(completed(orders[instance.ID]))
		if err != nil {
			return nil, err
		}
		messages = append(messages, message)
	}
	return errs, outbox.Write(ctx, tx, messages...)
}

// failed ends an order for which everything is undone, and tells of it.
func failed(ctx context.Context, tx pgx.Tx, in *saga.Instance, cause saga.Failure) error {
	// Under this lock no cancel can be accepted between the look and the status.
	var cancelled, refunded bool
	err := tx.QueryRow(ctx, `
		SELECT cancel_requested_at IS NOT NULL, EXISTS (SELECT FROM payments WHERE order_id = $1 AND status = 'refunded')
		FROM orders
		WHERE id = $1
		FOR NO KEY UPDATE`, in.ID).Scan(&cancelled, &refunded)
	if err != nil {
		return fmt.Errorf("lock order %s: %w", in.ID, err)
	}
	status, reason := verdict(cause, cancelled, refunded)
	if err := order.SetStatus(ctx, tx, in.ID, order.Pending, status, reason); err != nil {
		return err
	}
	o, err := order.ByID(ctx, tx, in.ID)
	if err != nil {
		return err
	}
	message, err := outbox.JSON(event.OrderFailed{
		OrderID: o.ID, UserID: o.UserID, UserSeq: o.UserSeq, Currency: o.Currency, Total: o.Total, Email: o.Email,
		Status: string(o.Status), Reason: o.Reason, FailedAt: o.UpdatedAt,
	})
	if err != nil {
		return err
	}
	return outbox.Write(ctx, tx, message)
}

// verdict is how an order ends. A cancel that was accepted is what the user was told, whatever else went wrong.
func verdict(cause saga.Failure, cancelled, refunded bool) (order.Status, string) {
	if cancelled {
		return order.Cancelled, reasonCancelled
	}
	status := order.Rejected
	if cause.Step == stepCharge {
		status = order.PaymentFailed
	}
	switch cause.Kind {
	case saga.FailedRejected:
		return status, cause.Reason
	case saga.FailedDeadline:
		if refunded {
			return status, reasonLateBack
		}
		return status, reasonDeadline
	default:
		return status, reasonOperator
	}
}

func completed(o order.Order) event.OrderCompleted {
	e := event.OrderCompleted{
		OrderID: o.ID, UserID: o.UserID, UserSeq: o.UserSeq, Currency: o.Currency, Total: o.Total, Email: o.Email,
		CompletedAt: o.UpdatedAt,
	}
	for _, item := range o.Items {
		e.Items = append(e.Items, event.Item{SKU: item.SKU, Name: item.Name, Quantity: item.Quantity, UnitPrice: item.UnitPrice})
	}
	return e
}

func byID(ctx context.Context, tx pgx.Tx, in []*saga.Instance) (map[uuid.UUID]order.Order, error) {
	ids := make([]uuid.UUID, len(in))
	for i, instance := range in {
		ids[i] = instance.ID
	}
	return load(ctx, tx, ids)
}
