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
	rows, _ := db.Query(ctx, `
		SELECT sku, name, unit_price, currency, 0::bigint
		FROM products
		WHERE sku = ANY($1)`, skus)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Product])
	if err != nil {
		return nil, fmt.Errorf("read the prices of %d products: %w", len(skus), err)
	}
	products := make(map[string]Product, len(list))
	for _, p := range list {
		products[p.SKU] = p
	}
	return products, nil
}

// Currencies returns the currencies that something in the catalog is sold in.
func Currencies(ctx context.Context, db DB) ([]string, error) {
	rows, _ := db.Query(ctx, `SELECT DISTINCT currency FROM products ORDER BY currency`)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read currencies: %w", err)
	}
	return list, nil
}
