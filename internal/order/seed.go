package order

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// Owner is a connection of the schema's owner. The services' own roles may read the catalog but not write it.
type Owner interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Offer is a product with the stock it starts with.
type Offer struct {
	Product
	Stock int64
}

// SoldOut is the SKU of the development catalog's product without stock.
const SoldOut = "sku-sold-out"

// Catalog returns the development catalog: twelve products in EUR with plenty of stock, and [SoldOut].
func Catalog() []Offer {
	return []Offer{
		{Product{SKU: "sku-apron", Name: "Linen apron", UnitPrice: 32_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-board", Name: "Walnut cutting board", UnitPrice: 54_90, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-candle", Name: "Beeswax candle", UnitPrice: 9_50, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-grinder", Name: "Hand coffee grinder", UnitPrice: 89_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-kettle", Name: "Gooseneck kettle", UnitPrice: 64_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-lamp", Name: "Desk lamp", UnitPrice: 119_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-mug", Name: "Stoneware mug", UnitPrice: 18_90, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-notebook", Name: "Dotted notebook", UnitPrice: 14_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-pen", Name: "Brass pen", UnitPrice: 27_50, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-scale", Name: "Kitchen scale", UnitPrice: 39_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-tea", Name: "Green tea, 100 g", UnitPrice: 7_80, Currency: "EUR"}, 1_000_000},
		{Product{SKU: "sku-towel", Name: "Waffle tea towel", UnitPrice: 12_00, Currency: "EUR"}, 1_000_000},
		{Product{SKU: SoldOut, Name: "Limited poster, sold out", UnitPrice: 45_00, Currency: "EUR"}, 0},
	}
}

// SeedCatalog adds the products of [Catalog] that are not there yet. Those that are keep their price and stock.
func SeedCatalog(ctx context.Context, owner Owner) error {
	return AddProducts(ctx, owner, Catalog())
}

// AddProducts adds products with their stock. A SKU that exists is left as it is.
func AddProducts(ctx context.Context, owner Owner, offers []Offer) error {
	// The schema is named because an owner's search_path does not lead here.
	_, err := owner.Exec(ctx, `
		WITH added AS (
			INSERT INTO orders.products (sku, name, unit_price, currency)
			SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
			ON CONFLICT DO NOTHING
			RETURNING sku
		)
		INSERT INTO orders.stock (sku, initial, available)
		SELECT sku, stock, stock
		FROM unnest($1::text[], $5::bigint[]) AS offered (sku, stock)
		JOIN added USING (sku)`, columns(offers)...)
	if err != nil {
		return fmt.Errorf("add %d products: %w", len(offers), err)
	}
	return nil
}

// PutProducts adds products, and changes those that exist to what offers say: all of them or, with an error, none. Stock is
// what can be ordered afterwards; what orders have reserved stays theirs. A SKU is in offers once.
func PutProducts(ctx context.Context, owner Owner, offers []Offer) error {
	// By SKU, as sagas lock them: two that lock in different orders would wait for each other.
	offers = slices.SortedFunc(slices.Values(offers), func(a, b Offer) int { return cmp.Compare(a.SKU, b.SKU) })
	_, err := owner.Exec(ctx, `
		WITH put AS (
			INSERT INTO orders.products (sku, name, unit_price, currency)
			SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
			ON CONFLICT (sku) DO UPDATE
			SET name = excluded.name, unit_price = excluded.unit_price, currency = excluded.currency
		)
		INSERT INTO orders.stock (sku, initial, available)
		SELECT sku, stock, stock
		FROM unnest($1::text[], $5::bigint[]) AS offered (sku, stock)
		ON CONFLICT (sku) DO UPDATE
		SET available = excluded.available, initial = excluded.available + stock.reserved + stock.shipped`, columns(offers)...)
	if err != nil {
		return fmt.Errorf("put %d products into the catalog: %w", len(offers), err)
	}
	return nil
}

// columns returns offers as the arrays that a statement unnests: SKUs, names, prices, currencies, stock.
func columns(offers []Offer) []any {
	skus, names, currencies := make([]string, len(offers)), make([]string, len(offers)), make([]string, len(offers))
	prices, stock := make([]int64, len(offers)), make([]int64, len(offers))
	for i, o := range offers {
		skus[i], names[i], currencies[i], prices[i], stock[i] = o.SKU, o.Name, o.Currency, o.UnitPrice, o.Stock
	}
	return []any{skus, names, prices, currencies, stock}
}
