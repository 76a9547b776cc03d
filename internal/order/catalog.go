package order

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Product is one product of the catalog. UnitPrice is in minor units of Currency. Available is what can be ordered now, and
// only a hint: stock is reserved by the order's saga, not when the order is placed.
type Product struct {
	SKU       string
	Name      string
	UnitPrice int64
	Currency  string
	Available int64
}

// Products returns a page of the catalog by SKU, behind after.
func Products(ctx context.Context, db DB, after string, limit int) ([]Product, error) {
	rows, _ := db.Query(ctx, `
		SELECT p.sku, p.name, p.unit_price, p.currency, coalesce(s.available, 0)
		FROM products p
		LEFT JOIN stock s USING (sku)
		WHERE p.sku > $1
		ORDER BY p.sku
		LIMIT $2`, after, limit)
	products, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Product])
	if err != nil {
		return nil, fmt.Errorf("read products: %w", err)
	}
	return products, nil
}

// Prices returns those of the named products that exist, by SKU. Available is not set.
func Prices(ctx context.Context, db DB, skus []string) (map[string]Product, error) {
	rows, _ := db.Query(ctx, selectPrices, skus)
	products := map[string]Product{}
	return products, collectPrices(rows, products)
}

// QueuePrices is [Prices] as a part of a batch. It fills products when the batch has run.
func QueuePrices(batch *pgx.Batch, skus []string, products map[string]Product) {
	batch.Queue(selectPrices, skus).Query(func(rows pgx.Rows) error { return collectPrices(rows, products) })
}

const selectPrices = `
	SELECT sku, name, unit_price, currency, 0::bigint
	FROM products
	WHERE sku = ANY($1)`

func collectPrices(rows pgx.Rows, products map[string]Product) error {
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Product])
	if err != nil {
		return fmt.Errorf("read prices: %w", err)
	}
	for _, p := range list {
		products[p.SKU] = p
	}
	return nil
}
