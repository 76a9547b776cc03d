package order

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

// claim is what one order wants of the stock, as the rows of table reservations say it.
type claim struct {
	OrderID  uuid.UUID
	SKU      string
	Quantity int64
}

// reserve reserves all lines of each order, or none of them. The orders of a batch are served in the order they come in,
// from what is left, so a batch that wants more than there is takes exactly what there is.
func reserve(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	errs := make([]error, len(in))
	var wants []claim
	orders := make([]placed, len(in))
	for i, instance := range in {
		if errs[i] = instance.Decode(&orders[i]); errs[i] != nil {
			continue
		}
		for _, l := range orders[i].Lines {
			wants = append(wants, claim{instance.ID, l.SKU, l.Quantity})
		}
	}
	fresh, err := hold(ctx, tx, wants)
	if err != nil {
		return nil, err
	}
	stock, err := lockStock(ctx, tx, wants)
	if err != nil {
		return nil, err
	}

	var taken []claim
	var refused []uuid.UUID
	for i, instance := range in {
		switch {
		case errs[i] != nil:
		case !fresh[instance.ID]: // released before it was reserved
			errs[i] = saga.Rejected(reasonReleased)
		default:
			if errs[i] = take(stock, orders[i].Lines); errs[i] != nil {
				refused = append(refused, instance.ID)
				continue
			}
			for _, l := range orders[i].Lines {
				taken = append(taken, claim{instance.ID, l.SKU, l.Quantity})
			}
		}
	}
	if err := letGo(ctx, tx, refused); err != nil {
		return nil, err
	}
	return errs, reserving.move(ctx, tx, taken)
}

// take takes lines from what is left, or says why it cannot and takes nothing.
func take(left map[string]int64, lines []line) error {
	for _, l := range lines {
		if left[l.SKU] < l.Quantity {
			return saga.Rejected("out of stock: " + l.SKU)
		}
	}
	for _, l := range lines {
		left[l.SKU] -= l.Quantity
	}
	return nil
}

// hold inserts the reservations and returns the orders whose lines were not there yet. It comes before any lock on stock,
// here as in release: of two that want one order's reservation, the second waits before it holds what others want.
func hold(ctx context.Context, tx pgx.Tx, wants []claim) (map[uuid.UUID]bool, error) {
	ids, skus, quantities := columns(wants)
	rows, _ := tx.Query(ctx, `
		INSERT INTO reservations (order_id, sku, quantity, state)
		SELECT order_id, sku, quantity, 'held'
		FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS w (order_id, sku, quantity)
		ORDER BY order_id, sku
		ON CONFLICT DO NOTHING
		RETURNING order_id`, ids, skus, quantities) // CollectRows reports the error
	inserted, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("hold %d lines: %w", len(wants), err)
	}
	fresh := make(map[uuid.UUID]bool, len(inserted))
	for _, id := range inserted {
		fresh[id] = true
	}
	return fresh, nil
}

// lockStock locks the stock of what is wanted and returns what is available. Every statement that changes stock locks it
// first, by ascending SKU: two batches that took the same rows the other way round would deadlock.
func lockStock(ctx context.Context, tx pgx.Tx, wants []claim) (map[string]int64, error) {
	_, skus, _ := columns(wants)
	slices.Sort(skus)
	rows, _ := tx.Query(ctx, `
		SELECT sku, available
		FROM stock
		WHERE sku = ANY($1)
		ORDER BY sku
		FOR NO KEY UPDATE`, slices.Compact(skus))
	available := map[string]int64{}
	var sku string
	var n int64
	_, err := pgx.ForEachRow(rows, []any{&sku, &n}, func() error {
		available[sku] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lock stock: %w", err)
	}
	return available, nil
}

// letGo turns the reservations of orders that cannot have theirs into the mark that release leaves.
func letGo(ctx context.Context, tx pgx.Tx, orders []uuid.UUID) error {
	if len(orders) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `
		UPDATE reservations SET state = 'released', updated_at = clock_timestamp()
		WHERE order_id = ANY($1) AND state = 'held'`, orders)
	if err != nil {
		return fmt.Errorf("let go of the reservations of %d orders: %w", len(orders), err)
	}
	return nil
}

// release gives back what was reserved, and marks what was not: a reserve that comes later finds the mark and is refused.
func release(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	errs := make([]error, len(in))
	var wants []claim
	var orders []uuid.UUID
	for i, instance := range in {
		var o placed
		if errs[i] = instance.Decode(&o); errs[i] != nil {
			continue
		}
		orders = append(orders, instance.ID)
		for _, l := range o.Lines {
			wants = append(wants, claim{instance.ID, l.SKU, l.Quantity})
		}
	}
	ids, skus, quantities := columns(wants)
	// The mark first: it waits for a reserve that is under way, and the statement after it sees what that did.
	_, err := tx.Exec(ctx, `
		INSERT INTO reservations (order_id, sku, quantity, state)
		SELECT order_id, sku, quantity, 'released'
		FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS w (order_id, sku, quantity)
		ORDER BY order_id, sku
		ON CONFLICT DO NOTHING`, ids, skus, quantities)
	if err != nil {
		return nil, fmt.Errorf("mark %d lines as released: %w", len(wants), err)
	}
	freed, err := endHold(ctx, tx, orders, "released")
	if err != nil {
		return nil, err
	}
	return errs, releasing.settle(ctx, tx, freed)
}

// endHold moves the held reservations of orders to another state and returns them.
func endHold(ctx context.Context, tx pgx.Tx, orders []uuid.UUID, state string) ([]claim, error) {
	rows, _ := tx.Query(ctx, `
		UPDATE reservations SET state = $2, updated_at = clock_timestamp()
		WHERE order_id = ANY($1) AND state = 'held'
		RETURNING order_id, sku, quantity`, orders, state)
	ended, err := pgx.CollectRows(rows, pgx.RowToStructByPos[claim])
	if err != nil {
		return nil, fmt.Errorf("make the reservations of %d orders %s: %w", len(orders), state, err)
	}
	return ended, nil
}

// moves is a kind of table stock_moves: what each unit of it does to the stock. available + reserved + shipped stays what it was.
type moves struct {
	kind                         string
	available, reserved, shipped int64
}

var (
	reserving = moves{kind: "reserve", available: -1, reserved: 1}
	releasing = moves{kind: "release", available: 1, reserved: -1}
	shipping  = moves{kind: "ship", reserved: -1, shipped: 1}
)

// settle moves the units of claims whose hold has ended, and is the last that a batch does with shared rows.
func (m moves) settle(ctx context.Context, tx pgx.Tx, claims []claim) error {
	if len(claims) == 0 {
		return nil
	}
	if _, err := lockStock(ctx, tx, claims); err != nil {
		return err
	}
	return m.move(ctx, tx, claims)
}

// move changes stock that the transaction has locked, and writes the ledger in the same statement: neither is without the other.
func (m moves) move(ctx context.Context, tx pgx.Tx, claims []claim) error {
	if len(claims) == 0 {
		return nil
	}
	ids, skus, quantities := columns(claims)
	tag, err := tx.Exec(ctx, `
		WITH moved AS (
			INSERT INTO stock_moves (order_id, sku, kind, quantity)
			SELECT order_id, sku, $4, quantity
			FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS c (order_id, sku, quantity)
			RETURNING sku, quantity
		)
		UPDATE stock s
		SET available = s.available + $5 * m.quantity, reserved = s.reserved + $6 * m.quantity, shipped = s.shipped + $7 * m.quantity
		FROM (SELECT sku, sum(quantity)::bigint AS quantity FROM moved GROUP BY sku) m
		WHERE s.sku = m.sku`, ids, skus, quantities, m.kind, m.available, m.reserved, m.shipped)
	if err != nil {
		return fmt.Errorf("%s the stock of %d lines: %w", m.kind, len(claims), err)
	}
	slices.Sort(skus)
	if products := len(slices.Compact(skus)); tag.RowsAffected() != int64(products) {
		return fmt.Errorf("%s the stock of %d products: %d have stock", m.kind, products, tag.RowsAffected())
	}
	return nil
}

func columns(claims []claim) (ids []uuid.UUID, skus []string, quantities []int64) {
	ids, skus, quantities = make([]uuid.UUID, len(claims)), make([]string, len(claims)), make([]int64, len(claims))
	for i, c := range claims {
		ids[i], skus[i], quantities[i] = c.OrderID, c.SKU, c.Quantity
	}
	return ids, skus, quantities
}
