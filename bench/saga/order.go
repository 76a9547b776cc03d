package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/migrations"
	"github.com/orderflow-dev/orderflow/saga"
)

// What there is to order.
const (
	products    = 1000
	productName = "A product"
	unitPrice   = 1000 // minor units
)

// order measures the saga of package services/order, payments included, in the service itself: validate, reserve stock, charge
// payment, complete order.
func (b *bench) order(ctx context.Context) ([]table.Row, error) {
	var tps, figures, ratios []float64
	err := b.withShop(ctx, "order", func(s *shop) error {
		for n := range b.Rounds {
			transactions, err := b.pgbenchTPS(ctx)
			if err != nil {
				return err
			}
			perSec, err := s.carry(ctx, b.orders, evenly)
			if err != nil {
				return err
			}
			tps, figures, ratios = append(tps, transactions), append(figures, perSec), append(ratios, perSec/transactions)
			fmt.Printf("order, round %d: pgbench %.0f tps, orders %.0f sagas/s\n", n+1, transactions, perSec)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{
		aimedAt("order saga with the sandbox as its provider (sagas/s)", figures, 1500, table.Median(tps)),
		table.Ratio("order saga: sagas/s ÷ pgbench's tps", ratios, 0.21),
	}, nil
}

// hot measures the same when half of the orders want one product, against orders that want all products evenly.
func (b *bench) hot(ctx context.Context) ([]table.Row, error) {
	var ratios []float64
	err := b.withShop(ctx, "hot", func(s *shop) error {
		for n := range b.Rounds {
			even, err := s.carry(ctx, b.orders, evenly)
			if err != nil {
				return err
			}
			hot, err := s.carry(ctx, b.orders, zipf())
			if err != nil {
				return err
			}
			ratios = append(ratios, hot/even)
			fmt.Printf("hot, round %d: orders of all products evenly %.0f sagas/s, half of them of one %.0f\n", n+1, even, hot)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{table.Ratio("order saga: half of the orders of one product ÷ evenly", ratios, 0.7)}, nil
}

// evenly has the i-th order want each product in turn.
func evenly(i int) int { return i % products }

// zipf has every other order want the first product, and the rest the others ever more rarely.
func zipf() func(int) int {
	// With the exponent 1.73 the first of the weights k^-s is half of their sum.
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.73, 1, products-1) //nolint:gosec // the same orders in each run
	return func(int) int { return int(z.Uint64()) }
}

// shop is the order service's database and what the service works with.
type shop struct {
	owner   *pgxpool.Pool // in the service's schema
	service []string      // arguments of orderCommand
}

// withShop makes a shop with a payment provider in a process of its own, and ends it.
func (b *bench) withShop(ctx context.Context, name string, use func(s *shop) error) error {
	return b.Server.Within(ctx, name, func(url string) error {
		if err := migrations.Up(ctx, url, migrations.Options{RolePassword: migrations.DevRolePassword}); err != nil {
			return err
		}
		roleURL, err := migrations.RoleURL(url, "orders", migrations.DevRolePassword)
		if err != nil {
			return err
		}
		var paymentURL string
		kill, err := legs.Start(ctx, &paymentURL, sandboxCommand, filepath.Join(b.Server.Dir, name+"-sandbox"))
		if err != nil {
			return err
		}
		defer kill()
		// The service reads topics too. Nothing is in them.
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			return fmt.Errorf("start the broker: %w", err)
		}
		defer cluster.Close()
		if err := kafka.EnsureTopics(ctx, cluster.ListenAddrs(), kafka.TopicOptions{}); err != nil {
			return err
		}
		owner, err := newPool(ctx, url+"&search_path=orders", nil)
		if err != nil {
			return err
		}
		defer owner.Close()
		s := &shop{owner: owner, service: append([]string{roleURL, paymentURL}, cluster.ListenAddrs()...)}
		if err := s.stock(ctx); err != nil {
			return err
		}
		return use(s)
	})
}

func sku(product int) string { return fmt.Sprintf("sku-%04d", product) }

// stock fills the catalog with more than anybody orders.
func (s *shop) stock(ctx context.Context) error {
	var offers []order.Offer
	for i := range products {
		offers = append(offers, order.Offer{
			Product: order.Product{SKU: sku(i), Name: productName, UnitPrice: unitPrice, Currency: "EUR"}, Stock: 1_000_000_000,
		})
	}
	return order.AddProducts(ctx, s.owner, offers)
}

// carry has the order service carry n orders, each of one product and of a user of its own, to their end, and returns how many
// it did in a second. The sagas are there before the service starts, so neither the api nor the topics are measured.
func (s *shop) carry(ctx context.Context, n int, product func(i int) int) (float64, error) {
	if err := fresh(ctx, s.owner, `orders, order_items, order_history, reservations, stock_moves, payments`, func() error {
		return s.place(ctx, n, product)
	}); err != nil {
		return 0, err
	}
	var running bool
	kill, err := legs.Start(ctx, &running, orderCommand, s.service...)
	if err != nil {
		return 0, err
	}
	defer kill()
	if err := untilEnded(ctx, s.owner); err != nil {
		return 0, err
	}
	return perSec(ctx, s.owner, n)
}

// place writes what the api writes of an order, and starts the saga that the service starts for it.
func (s *shop) place(ctx context.Context, n int, product func(i int) int) error {
	ids, users, skus := make([]uuid.UUID, n), make([]string, n), make([]string, n)
	for i := range n {
		ids[i], users[i], skus[i] = uuid.Must(uuid.NewV7()), fmt.Sprint("user-", i), sku(product(i))
	}
	var b pgx.Batch
	b.Queue(`
		INSERT INTO orders (id, user_id, user_seq, status, currency, total, email, payment_method, created_at, updated_at)
		SELECT id, user_id, 1, 'pending', 'EUR', $3, 'bench@example.com', 'pm_ok', now(), now()
		FROM unnest($1::uuid[], $2::text[]) AS o (id, user_id)`, ids, users, unitPrice)
	b.Queue(`
		INSERT INTO order_items (order_id, sku, line, name, quantity, unit_price)
		SELECT id, sku, 1, $3, 1, $4
		FROM unnest($1::uuid[], $2::text[]) AS o (id, sku)`, ids, skus, productName, unitPrice)
	b.Queue(`
		INSERT INTO order_history (order_id, version, kind, to_status)
		SELECT id, 1, 'placed', 'pending'
		FROM unnest($1::uuid[]) AS id`, ids)
	if err := s.owner.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("place %d orders: %w", n, err)
	}
	return start(ctx, s.owner, n, func(i int) saga.NewInstance {
		in := inLane(users[i], "place-order")
		in.ID = ids[i]
		in.Data = map[string]any{ // as services/order reads it
			"currency": "EUR", "total": unitPrice, "payment_method": "pm_ok",
			"lines": []map[string]any{{"sku": skus[i], "quantity": 1}},
		}
		return in
	})
}
