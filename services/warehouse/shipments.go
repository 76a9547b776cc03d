package warehouse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/outbox"
)

// classInvalid is the class of events that are readable and wrong.
const classInvalid = "business_invalid"

func routes() []inbox.Route {
	return []inbox.Route{
		inbox.TypedBatch(event.OrdersCompleted, event.OrderCompletedV1, ship),
		inbox.TypedBatch(event.OrdersCompleted, event.OrderRefundedV1, cancel),
	}
}

func validate(e event.OrderCompleted) error {
	if e.OrderID == uuid.Nil {
		return errors.New("there is no order_id")
	}
	if len(e.Items) == 0 {
		return errors.New("there are no items")
	}
	for i, item := range e.Items {
		if item.SKU == "" || item.Quantity <= 0 {
			return fmt.Errorf("item %d has no sku, or a quantity that is not positive", i)
		}
	}
	return nil
}

// ship makes the shipments of completed orders and publishes them, in the order of their events.
func ship(ctx context.Context, tx pgx.Tx, orders []inbox.Event[event.OrderCompleted]) error {
	now := time.Now().UTC()
	shipments := make([]event.ShipmentCreated, 0, len(orders))
	for _, e := range orders {
		if err := validate(e.Data); err != nil {
			return inbox.PermanentAs(classInvalid, fmt.Errorf("%s %s: %w", e.Type, e.ID, err))
		}
		shipments = append(shipments, shipmentOf(e.Data, now))
	}
	made, err := insertShipments(ctx, tx, shipments)
	if err != nil {
		return err
	}
	var fresh []event.ShipmentCreated
	var events []outbox.Message
	for _, s := range shipments {
		if !made[s.ShipmentID] {
			continue // the order has a shipment: another event told of it
		}
		m, err := outbox.JSON(s)
		if err != nil {
			return err
		}
		fresh, events = append(fresh, s), append(events, m)
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := insertPickLists(ctx, tx, fresh); err != nil {
		return err
	}
	return outbox.Write(ctx, tx, events...)
}

func shipmentOf(e event.OrderCompleted, now time.Time) event.ShipmentCreated {
	s := event.ShipmentCreated{
		ShipmentID: uuid.Must(uuid.NewV7()), OrderID: e.OrderID, UserID: e.UserID, Email: e.Email, ShippedAt: now,
	}
	for _, item := range e.Items {
		s.Items = append(s.Items, event.ShipmentItem{SKU: item.SKU, Name: item.Name, Quantity: item.Quantity})
	}
	return s
}

// insertShipments returns the ids of those that were made. An order that has a shipment gets no other.
func insertShipments(ctx context.Context, tx pgx.Tx, shipments []event.ShipmentCreated) (map[uuid.UUID]bool, error) {
	var ids, orders []uuid.UUID
	var users []string
	var at []time.Time
	for _, s := range shipments {
		ids, orders, users, at = append(ids, s.ShipmentID), append(orders, s.OrderID), append(users, s.UserID), append(at, s.ShippedAt)
	}
	// Sorted: two consumers that insert the same orders' shipments in different orders would deadlock.
	rows, _ := tx.Query(ctx, `
		INSERT INTO shipments (id, order_id, user_id, state, shipped_at)
		SELECT id, order_id, user_id, 'shipped', shipped_at
		FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[]) AS s (id, order_id, user_id, shipped_at)
		ORDER BY order_id, id
		ON CONFLICT (order_id) DO NOTHING
		RETURNING id`, ids, orders, users, at) // CollectRows reports the error
	inserted, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("insert shipments: %w", err)
	}
	made := make(map[uuid.UUID]bool, len(inserted))
	for _, id := range inserted {
		made[id] = true
	}
	return made, nil
}

func insertPickLists(ctx context.Context, tx pgx.Tx, shipments []event.ShipmentCreated) error {
	var (
		ids              []uuid.UUID
		lines            []int
		skus, names, bin []string
		quantities       []int64
	)
	for _, s := range shipments {
		for i, l := range pickList(s.Items) {
			ids, lines, bin = append(ids, s.ShipmentID), append(lines, i+1), append(bin, l.bin)
			skus, names, quantities = append(skus, l.SKU), append(names, l.Name), append(quantities, l.Quantity)
		}
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO shipment_items (shipment_id, line, bin, sku, name, quantity, picked)
		SELECT id, line, bin, sku, name, quantity, quantity
		FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::bigint[]) AS l (id, line, bin, sku, name, quantity)`,
		ids, lines, bin, skus, names, quantities)
	if err != nil {
		return fmt.Errorf("insert pick lists: %w", err)
	}
	return nil
}

// cancel keeps refunded orders that have no shipment from ever getting one, and tells of it. Such an order's completion was
// given up: it lies in front of the refund in the same topic.
func cancel(ctx context.Context, tx pgx.Tx, refunded []inbox.Event[event.OrderRefunded]) error {
	now := time.Now().UTC()
	cancels := make([]event.ShipmentCancelled, len(refunded))
	var ids, orders []uuid.UUID
	var users []string
	for i, r := range refunded {
		e := r.Data
		if e.OrderID == uuid.Nil {
			return inbox.PermanentAs(classInvalid, fmt.Errorf("%s %s: there is no order_id", r.Type, r.ID))
		}
		cancels[i] = event.ShipmentCancelled{ShipmentID: uuid.Must(uuid.NewV7()), OrderID: e.OrderID, UserID: e.UserID, CancelledAt: now}
		ids, orders, users = append(ids, cancels[i].ShipmentID), append(orders, e.OrderID), append(users, e.UserID)
	}
	rows, _ := tx.Query(ctx, `
		INSERT INTO shipments (id, order_id, user_id, state)
		SELECT id, order_id, user_id, 'cancelled'
		FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS s (id, order_id, user_id)
		ORDER BY order_id, id
		ON CONFLICT (order_id) DO NOTHING
		RETURNING id`, ids, orders, users) // CollectRows reports the error
	inserted, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("cancel shipments: %w", err)
	}
	var events []outbox.Message
	for _, c := range cancels {
		if !slices.Contains(inserted, c.ShipmentID) {
			continue
		}
		m, err := outbox.JSON(c)
		if err != nil {
			return err
		}
		events = append(events, m)
	}
	if len(events) == 0 {
		return nil
	}
	return outbox.Write(ctx, tx, events...)
}
