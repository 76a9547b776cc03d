package order

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/saga"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// shop is a database with a catalog.
type shop struct {
	*pgtest.DB
	pool *pgxpool.Pool // as the service's role
}

// newShop returns a shop that has stock of each product, at 10.00 EUR.
func newShop(t testing.TB, stock map[string]int64) *shop {
	t.Helper()
	s := &shop{DB: migrated.New(t)}
	s.pool = s.RolePool("orders")
	var offers []order.Offer
	for sku, n := range stock {
		offers = append(offers, order.Offer{Product: order.Product{SKU: sku, Name: "A " + sku, UnitPrice: 1000, Currency: "EUR"}, Stock: n})
	}
	if err := order.AddProducts(t.Context(), s.DB.Pool, offers); err != nil {
		t.Fatal(err)
	}
	return s
}

// place inserts an order as the api does and returns the event that tells of it.
func (s *shop) place(t testing.TB, user, method string, items ...event.Item) (e event.OrderPlaced) {
	t.Helper()
	s.tx(t, func(tx pgx.Tx) (err error) {
		e, err = insert(t.Context(), tx, user, method, items...)
		return err
	})
	return e
}

func insert(ctx context.Context, tx pgx.Tx, user, method string, items ...event.Item) (event.OrderPlaced, error) {
	o := order.Order{
		ID: uuid.Must(uuid.NewV7()), UserID: user, Currency: "EUR", Email: user + "@example.com", PaymentMethod: method,
		CreatedAt: time.Now().UTC(),
	}
	for i := range items {
		items[i].Name, items[i].UnitPrice = "A "+items[i].SKU, 1000
		o.Items = append(o.Items, order.Item{SKU: items[i].SKU, Name: items[i].Name, Quantity: items[i].Quantity, UnitPrice: 1000})
		o.Total += items[i].Quantity * 1000
	}
	if err := order.Insert(ctx, tx, &o); err != nil {
		return event.OrderPlaced{}, err
	}
	return event.OrderPlaced{
		OrderID: o.ID, UserID: user, UserSeq: o.UserSeq, Currency: o.Currency, Total: o.Total, Email: o.Email,
		PaymentMethod: method, Items: items, PlacedAt: o.CreatedAt,
	}, nil
}

// tx runs f in a transaction of the service's role.
func (s *shop) tx(t testing.TB, f func(tx pgx.Tx) error) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), s.pool, f); err != nil {
		t.Fatal(err)
	}
}

// warm opens n connections, so that transactions that start together run together.
func (s *shop) warm(t testing.TB, n int) {
	t.Helper()
	for range n {
		conn, err := s.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
}

// stock returns what is available, reserved and shipped of a product.
func (s *shop) stock(t testing.TB, sku string) [3]int64 {
	t.Helper()
	var n [3]int64
	err := s.pool.QueryRow(t.Context(), `SELECT available, reserved, shipped FROM stock WHERE sku = $1`, sku).Scan(&n[0], &n[1], &n[2])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// text runs a query that returns one text.
func (s *shop) text(t testing.TB, query string, args ...any) string {
	t.Helper()
	var v string
	if err := s.DB.Pool.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func (s *shop) status(t testing.TB, id uuid.UUID) string {
	t.Helper()
	return s.text(t, `SELECT status FROM orders.orders WHERE id = $1`, id)
}

// instance is the saga of an order as a step sees it.
func instance(t testing.TB, e event.OrderPlaced) *saga.Instance {
	t.Helper()
	started := start(e)
	raw, err := json.Marshal(started.Data)
	if err != nil {
		t.Fatal(err)
	}
	return &saga.Instance{ID: started.ID, Lane: started.Lane, Definition: started.Definition, Version: started.Version, Data: raw}
}

func item(sku string, quantity int64) event.Item { return event.Item{SKU: sku, Quantity: quantity} }

// patience is more than anything takes on a busy machine.
const patience = 2 * time.Minute

// eventually waits until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func want[T comparable](what string, got, wanted T) error {
	if got != wanted {
		return fmt.Errorf("%s = %v, want %v", what, got, wanted)
	}
	return nil
}
