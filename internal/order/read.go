package order

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// DB is what reading needs: a pool, a connection or a transaction.
type DB interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ByID returns one order with its items, or [ErrNotFound].
func ByID(ctx context.Context, db DB, id uuid.UUID) (Order, error) {
	orders, err := ByIDs(ctx, db, []uuid.UUID{id})
	if err != nil {
		return Order{}, err
	}
	if len(orders) == 0 {
		return Order{}, fmt.Errorf("order %s: %w", id, ErrNotFound)
	}
	return orders[0], nil
}

// ByIDs returns those of the named orders that exist, by ascending id.
func ByIDs(ctx context.Context, db DB, ids []uuid.UUID) ([]Order, error) {
	rows, _ := db.Query(ctx, selectOrders+`
		WHERE o.id = ANY($1)
		ORDER BY o.id`, ids)
	return collect(rows)
}

// Filter chooses orders. UserID and Status are optional.
type Filter struct {
	UserID string
	Status Status
	// After continues a list behind the last order of the page before: its UserSeq with a UserID, else its ID.
	AfterSeq int64
	AfterID  uuid.UUID
	// Limit is the most orders to return.
	Limit int
}

// List returns orders, newest first. A page costs the same wherever it is in the list, with one exception: a Status
// other than [Pending] has no index, so the list reads past every newer order that has another one, of the user if there
// is a UserID and of everybody otherwise. A page of a rare status of everybody can read the whole table.
func List(ctx context.Context, db DB, f Filter) ([]Order, error) {
	if f.UserID != "" {
		rows, _ := db.Query(ctx, selectOrders+`
			WHERE o.user_id = $1 AND ($2 = '' OR o.status = $2) AND ($3 = 0 OR o.user_seq < $3)
			ORDER BY o.user_seq DESC
			LIMIT $4`, f.UserID, string(f.Status), f.AfterSeq, f.Limit)
		return collect(rows)
	}
	after := f.AfterID
	if after == uuid.Nil {
		after = uuid.Max
	}
	if f.Status == Pending { // a statement of its own: only a literal lets the planner use the index of pending orders
		rows, _ := db.Query(ctx, selectOrders+`
			WHERE o.status = 'pending' AND o.id < $1
			ORDER BY o.id DESC
			LIMIT $2`, after, f.Limit)
		return collect(rows)
	}
	rows, _ := db.Query(ctx, selectOrders+`
		WHERE ($1 = '' OR o.status = $1) AND o.id < $2
		ORDER BY o.id DESC
		LIMIT $3`, string(f.Status), after, f.Limit)
	return collect(rows)
}

// The items come as four arrays of one row, so that an order is read in one statement and thus in one snapshot.
const selectOrders = `
	SELECT o.id, o.user_id, o.user_seq, o.status, o.currency, o.total, o.email, o.payment_method, o.reason,
		o.cancel_requested_at, o.version, o.created_at, o.updated_at,
		i.skus, i.names, i.quantities, i.prices
	FROM orders o
	CROSS JOIN LATERAL (
		SELECT array_agg(sku ORDER BY line) AS skus, array_agg(name ORDER BY line) AS names,
			array_agg(quantity ORDER BY line) AS quantities, array_agg(unit_price ORDER BY line) AS prices
		FROM order_items
		WHERE order_id = o.id
	) i`

func collect(rows pgx.Rows) ([]Order, error) {
	orders, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Order, error) {
		var o Order
		var skus, names []string
		var quantities, prices []int64
		err := row.Scan(&o.ID, &o.UserID, &o.UserSeq, &o.Status, &o.Currency, &o.Total, &o.Email, &o.PaymentMethod, &o.Reason,
			&o.CancelRequestedAt, &o.Version, &o.CreatedAt, &o.UpdatedAt, &skus, &names, &quantities, &prices)
		if err != nil {
			return Order{}, err
		}
		o.CreatedAt, o.UpdatedAt = o.CreatedAt.UTC(), o.UpdatedAt.UTC()
		if o.CancelRequestedAt != nil {
			at := o.CancelRequestedAt.UTC()
			o.CancelRequestedAt = &at
		}
		for i := range skus {
			o.Items = append(o.Items, Item{SKU: skus[i], Name: names[i], Quantity: quantities[i], UnitPrice: prices[i]})
		}
		return o, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	return orders, nil
}

// Entry is one row of an order's history. Kind is placed, cancel_requested or status.
type Entry struct {
	Version int64
	Kind    string
	From    Status // empty for placed
	To      Status
	Reason  string
	At      time.Time
}

// History returns what happened to an order, oldest first. It is empty for an order that does not exist.
func History(ctx context.Context, db DB, id uuid.UUID) ([]Entry, error) {
	rows, _ := db.Query(ctx, `
		SELECT version, kind, coalesce(from_status, ''), to_status, reason, at
		FROM order_history
		WHERE order_id = $1
		ORDER BY version`, id)
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Entry, error) {
		var e Entry
		err := row.Scan(&e.Version, &e.Kind, &e.From, &e.To, &e.Reason, &e.At)
		e.At = e.At.UTC()
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of order %s: %w", id, err)
	}
	return entries, nil
}
