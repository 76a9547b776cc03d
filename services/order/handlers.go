package order

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/saga"
)

// Classes of messages that this service gives up, beside those of package inbox.
const (
	classInvalid      = "business_invalid" // it contradicts the order it is about
	classUnknownOrder = "unknown_order"    // there is no such order, however often it was looked for
)

func routes() []inbox.Route {
	return []inbox.Route{
		inbox.TypedBatch(event.Orders, event.OrderPlacedV1, startSagas),
		inbox.Typed(event.Orders, event.OrderCancelRequestedV1, cancel),
		inbox.Typed(event.Orders, event.OrderRefundRequestedV1, startRefund),
		inbox.TypedBatch(event.Shipments, event.ShipmentCreatedV1, ship),
		inbox.TypedBatch(event.Shipments, event.ShipmentCancelledV1, unship),
		inbox.Typed(event.Payments, event.PaymentReportedV1, reported),
	}
}

// startSagas starts the saga of each order that was placed. A saga has its order's id, so the same order placed by another
// message starts nothing.
func startSagas(ctx context.Context, tx pgx.Tx, events []inbox.Event[event.OrderPlaced]) error {
	ids := make([]uuid.UUID, len(events))
	for i, e := range events {
		ids[i] = e.Data.OrderID
	}
	orders, err := load(ctx, tx, ids)
	if err != nil {
		return err
	}
	starts := make([]saga.NewInstance, len(events))
	for i, e := range events {
		o, ok := orders[e.Data.OrderID]
		if !ok {
			return unknown(e.Data.OrderID)
		}
		if err := agrees(o, e.Data); err != nil {
			return inbox.PermanentAs(classInvalid, err)
		}
		starts[i] = start(e.Data)
	}
	return saga.Start(ctx, tx, starts...)
}

// agrees checks an event against the order's row: the event says what will be charged and reserved, so one that is not what
// the api accepted must not start anything.
func agrees(o order.Order, e event.OrderPlaced) error {
	same := o.UserID == e.UserID && o.UserSeq == e.UserSeq && o.Total == e.Total && o.Currency == e.Currency &&
		o.PaymentMethod == e.PaymentMethod &&
		slices.EqualFunc(o.Items, e.Items, func(a order.Item, b event.Item) bool {
			return a.SKU == b.SKU && a.Quantity == b.Quantity && a.UnitPrice == b.UnitPrice
		})
	if !same {
		return fmt.Errorf("order %s was placed otherwise than its message says", o.ID)
	}
	return nil
}

// cancel wakes the saga of an order whose cancel was accepted. The decision is in the order's row, so a message without one
// there is none of ours.
func cancel(ctx context.Context, tx pgx.Tx, requested inbox.Event[event.OrderCancelRequested]) error {
	e := requested.Data
	o, err := order.ByID(ctx, tx, e.OrderID)
	switch {
	case errors.Is(err, order.ErrNotFound):
		return unknown(e.OrderID)
	case err != nil:
		return err
	case o.UserID != e.UserID || o.CancelRequestedAt == nil:
		return inbox.PermanentAs(classInvalid, fmt.Errorf("cancel of order %s was never accepted", o.ID))
	}
	return saga.RequestCancel(ctx, tx, e.OrderID)
}

// ship notes what the warehouse has handed over. Stock is shared between users, so it comes last and set-based.
func ship(ctx context.Context, tx pgx.Tx, events []inbox.Event[event.ShipmentCreated]) error {
	ids := make([]uuid.UUID, len(events))
	for i, e := range events {
		ids[i] = e.Data.OrderID
	}
	orders, err := load(ctx, tx, ids)
	if err != nil {
		return err
	}
	var changes []order.Change
	for _, e := range events {
		o, ok := orders[e.Data.OrderID]
		switch {
		case !ok:
			return unknown(e.Data.OrderID)
		case o.UserID != e.Data.UserID, !o.Status.CanBecome(order.Refunded) && o.Status != order.Refunded:
			return inbox.PermanentAs(classInvalid, fmt.Errorf("order %s is %s and was never to be shipped", o.ID, o.Status))
		case o.Status == order.Completed:
			changes = append(changes, order.Change{ID: o.ID, From: order.Completed, To: order.Shipped})
			o.Status = order.Shipped // a second shipment of it in this batch changes nothing
			orders[o.ID] = o
		}
	}
	errs, err := order.SetStatuses(ctx, tx, changes)
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	shipped, err := endHold(ctx, tx, ids, "shipped")
	if err != nil {
		return err
	}
	return shipping.settle(ctx, tx, shipped)
}

// unship frees the stock of refunded orders that will never be handed over.
func unship(ctx context.Context, tx pgx.Tx, cancelled []inbox.Event[event.ShipmentCancelled]) error {
	ids := make([]uuid.UUID, len(cancelled))
	for i, e := range cancelled {
		ids[i] = e.Data.OrderID
	}
	orders, err := load(ctx, tx, ids)
	if err != nil {
		return err
	}
	for _, e := range cancelled {
		o, ok := orders[e.Data.OrderID]
		if !ok {
			return unknown(e.Data.OrderID)
		}
		if o.UserID != e.Data.UserID || o.Status != order.Refunded {
			return inbox.PermanentAs(classInvalid, fmt.Errorf("order %s is %s and its shipment was never to be cancelled", o.ID, o.Status))
		}
	}
	freed, err := endHold(ctx, tx, ids, "released")
	if err != nil {
		return err
	}
	return releasing.settle(ctx, tx, freed)
}

// unknown is tried again: only Postgres can say that an order exists, and it may be a restored one that is still behind.
func unknown(id uuid.UUID) error {
	return inbox.WithClass(classUnknownOrder, fmt.Errorf("order %s: %w", id, order.ErrNotFound))
}

func load(ctx context.Context, tx pgx.Tx, ids []uuid.UUID) (map[uuid.UUID]order.Order, error) {
	list, err := order.ByIDs(ctx, tx, ids)
	if err != nil {
		return nil, err
	}
	orders := make(map[uuid.UUID]order.Order, len(list))
	for _, o := range list {
		orders[o.ID] = o
	}
	return orders, nil
}
