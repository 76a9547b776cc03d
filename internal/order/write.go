package order

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Insert writes a new order with its items and first history row, and sets o.UserSeq. The caller has set everything else:
// ID, the user's fields, Items with names and prices, Total, CreatedAt. Status and Version are set here.
//
// Orders of one user queue here until the transaction before has ended: that is what makes UserSeq dense and in commit order.
func Insert(ctx context.Context, tx pgx.Tx, o *Order) error {
	batch := &pgx.Batch{}
	QueueInsert(batch, o)
	return tx.SendBatch(ctx, batch).Close()
}

// QueueInsert is [Insert] as a part of a batch, for callers that have more to write in the same round trip. o.UserSeq is set
// when the batch has run.
func QueueInsert(batch *pgx.Batch, o *Order) {
	o.Status, o.Version, o.UpdatedAt = Pending, 1, o.CreatedAt
	skus, names := make([]string, len(o.Items)), make([]string, len(o.Items))
	quantities, prices := make([]int64, len(o.Items)), make([]int64, len(o.Items))
	for i, item := range o.Items {
		skus[i], names[i], quantities[i], prices[i] = item.SKU, item.Name, item.Quantity, item.UnitPrice
	}
	// One statement: foreign keys are checked at its end, so the order of its parts does not matter.
	batch.Queue(`
		WITH seq AS (
			INSERT INTO user_sequences (user_id, last_seq) VALUES ($2, 1)
			ON CONFLICT (user_id) DO UPDATE SET last_seq = user_sequences.last_seq + 1
			RETURNING last_seq
		), placed AS (
			INSERT INTO orders (id, user_id, user_seq, status, currency, total, email, payment_method, created_at, updated_at)
			SELECT $1, $2, seq.last_seq, 'pending', $3, $4, $5, $6, $7, $7 FROM seq
		), items AS (
			INSERT INTO order_items (order_id, sku, line, name, quantity, unit_price)
			SELECT $1, i.sku, i.line, i.name, i.quantity, i.unit_price
			FROM unnest($8::text[], $9::text[], $10::bigint[], $11::bigint[])
				WITH ORDINALITY AS i (sku, name, quantity, unit_price, line)
		), history AS (
			INSERT INTO order_history (order_id, version, kind, to_status, at)
			VALUES ($1, 1, 'placed', 'pending', $7)
		)
		SELECT last_seq FROM seq`,
		o.ID, o.UserID, o.Currency, o.Total, o.Email, o.PaymentMethod, o.CreatedAt,
		skus, names, quantities, prices,
	).QueryRow(func(row pgx.Row) error {
		if err := row.Scan(&o.UserSeq); err != nil {
			return fmt.Errorf("insert order %s: %w", o.ID, err)
		}
		return nil
	})
}

// Change moves one order from one status to another. Reason is a sentence for the user; empty keeps the order's reason.
type Change struct {
	ID       uuid.UUID
	From, To Status
	Reason   string
}

// SetStatus changes one order's status. It returns [ErrNotFound], [ErrStatus] when the order is not in from or may not
// become to, and [ErrCancelRequested] when to is Completed and a cancel was accepted.
func SetStatus(ctx context.Context, tx pgx.Tx, id uuid.UUID, from, to Status, reason string) error {
	errs, err := SetStatuses(ctx, tx, []Change{{ID: id, From: from, To: to, Reason: reason}})
	if err != nil {
		return err
	}
	return errs[0]
}

// SetStatuses makes many changes in two round trips. errs[i] says why changes[i] was not made, with the errors of
// [SetStatus], or is nil; err reports that the database failed, and then nothing may be concluded from errs. No two changes
// may name the same order.
func SetStatuses(ctx context.Context, tx pgx.Tx, changes []Change) (errs []error, err error) {
	errs = make([]error, len(changes))
	current, err := lockOrders(ctx, tx, changes)
	if err != nil {
		return nil, err
	}
	var ids []uuid.UUID
	var from, to, reasons []string
	for i, c := range changes {
		if errs[i] = c.check(current); errs[i] != nil {
			continue
		}
		ids = append(ids, c.ID)
		from, to, reasons = append(from, string(c.From)), append(to, string(c.To)), append(reasons, c.Reason)
	}
	if len(ids) == 0 {
		return errs, nil
	}
	tag, err := tx.Exec(ctx, `
		WITH changed AS (
			UPDATE orders o
			SET status = c.to_status, version = o.version + 1, updated_at = clock_timestamp(),
				reason = CASE WHEN c.reason = '' THEN o.reason ELSE c.reason END
			FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS c (id, from_status, to_status, reason)
			WHERE o.id = c.id AND o.status = c.from_status
			RETURNING o.id, o.version, o.updated_at, c.from_status, c.to_status, c.reason
		)
		INSERT INTO order_history (order_id, version, kind, from_status, to_status, reason, at)
		SELECT id, version, 'status', from_status, to_status, reason, updated_at FROM changed`, ids, from, to, reasons)
	if err != nil {
		return nil, fmt.Errorf("set status of %d orders: %w", len(ids), err)
	}
	if tag.RowsAffected() != int64(len(ids)) {
		return nil, fmt.Errorf("set status of %d orders: changed %d although all were locked", len(ids), tag.RowsAffected())
	}
	return errs, nil
}

type locked struct {
	ID        uuid.UUID
	Status    Status
	Cancelled bool
}

// lockOrders locks the orders of changes in the order of their ids: two batches that locked the same orders the other way
// round would deadlock.
func lockOrders(ctx context.Context, tx pgx.Tx, changes []Change) (map[uuid.UUID]locked, error) {
	ids := make([]uuid.UUID, len(changes))
	for i, c := range changes {
		ids[i] = c.ID
	}
	rows, _ := tx.Query(ctx, `
		SELECT id, status, cancel_requested_at IS NOT NULL
		FROM orders
		WHERE id = ANY($1)
		ORDER BY id
		FOR NO KEY UPDATE`, ids) // CollectRows reports the error
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[locked])
	if err != nil {
		return nil, fmt.Errorf("lock %d orders: %w", len(ids), err)
	}
	current := make(map[uuid.UUID]locked, len(list))
	for _, l := range list {
		current[l.ID] = l
	}
	return current, nil
}

func (c Change) check(current map[uuid.UUID]locked) error {
	now, ok := current[c.ID]
	switch {
	case !ok:
		return fmt.Errorf("order %s: %w", c.ID, ErrNotFound)
	case c.To == Completed && now.Cancelled && now.Status == Pending:
		return fmt.Errorf("complete order %s: %w", c.ID, ErrCancelRequested)
	case now.Status != c.From || !c.From.CanBecome(c.To):
		return fmt.Errorf("order %s is %s, cannot go from %s to %s: %w", c.ID, now.Status, c.From, c.To, ErrStatus)
	}
	return nil
}

// Cancel is an accepted request to cancel an order.
type Cancel struct {
	OrderID     uuid.UUID
	UserID      string
	RequestedAt time.Time
	// First is true for the request that was noted now, and false for one that repeats it.
	First bool
}

// RequestCancel notes that the user wants the order cancelled, if it is still pending. A second request gets the first one's
// answer, whatever became of the order since. It returns [ErrNotFound], and [ErrStatus] when the order was decided before.
func RequestCancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Cancel, error) {
	c := Cancel{OrderID: id}
	var status Status
	var at *time.Time
	// Under this lock nobody can complete the order between the look and the note.
	err := tx.QueryRow(ctx, `
		SELECT user_id, status, cancel_requested_at
		FROM orders
		WHERE id = $1
		FOR NO KEY UPDATE`, id).Scan(&c.UserID, &status, &at)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Cancel{}, fmt.Errorf("order %s: %w", id, ErrNotFound)
	case err != nil:
		return Cancel{}, fmt.Errorf("lock order %s: %w", id, err)
	case at != nil:
		c.RequestedAt = at.UTC()
		return c, nil
	case status != Pending:
		return Cancel{}, fmt.Errorf("cancel order %s, which is %s: %w", id, status, ErrStatus)
	}
	c.First = true
	err = tx.QueryRow(ctx, `
		WITH noted AS (
			UPDATE orders
			SET cancel_requested_at = clock_timestamp(), updated_at = clock_timestamp(), version = version + 1
			WHERE id = $1
			RETURNING id, version, cancel_requested_at
		), history AS (
			INSERT INTO order_history (order_id, version, kind, from_status, to_status, at)
			SELECT id, version, 'cancel_requested', 'pending', 'pending', cancel_requested_at FROM noted
		)
		SELECT cancel_requested_at FROM noted`, id).Scan(&c.RequestedAt)
	if err != nil {
		return Cancel{}, fmt.Errorf("note the cancel of order %s: %w", id, err)
	}
	c.RequestedAt = c.RequestedAt.UTC()
	return c, nil
}
