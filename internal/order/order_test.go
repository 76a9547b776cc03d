package order_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// newPool returns a pool with the service's own rights on a database with the development catalog.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	db := migrated.New(t)
	if err := order.SeedCatalog(t.Context(), db.Pool); err != nil {
		t.Fatal(err)
	}
	return db.RolePool("orders")
}

func newOrder(userID string) *order.Order {
	return &order.Order{
		ID: uuid.Must(uuid.NewV7()), UserID: userID, Currency: "EUR", Total: 2*18_90 + 14_00,
		Email: "ada@example.com", PaymentMethod: "pm_ok", CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
		Items: []order.Item{
			{SKU: "sku-notebook", Name: "Dotted notebook", Quantity: 1, UnitPrice: 14_00},
			{SKU: "sku-mug", Name: "Stoneware mug", Quantity: 2, UnitPrice: 18_90},
		},
	}
}

func insert(t *testing.T, pool *pgxpool.Pool, o *order.Order) *order.Order {
	t.Helper()
	inTx(t, pool, func(tx pgx.Tx) error { return order.Insert(t.Context(), tx, o) })
	return o
}

func inTx(t *testing.T, pool *pgxpool.Pool, do func(pgx.Tx) error) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), pool, do); err != nil {
		t.Fatal(err)
	}
}

func setStatus(ctx context.Context, pool *pgxpool.Pool, id uuid.UUID, from, to order.Status) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return order.SetStatus(ctx, tx, id, from, to, "because") })
}

func TestInsertedOrderReadsBackAsWritten(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	want := insert(t, pool, newOrder("ada"))
	got, err := order.ByID(t.Context(), pool, want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*want, got); diff != "" {
		t.Errorf("ByID after Insert (-want +got):\n%s", diff)
	}
}

func TestUserSeqIsDenseUnderConcurrencyAndRollback(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	abort := errors.New("abort")
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if err := order.Insert(t.Context(), tx, newOrder("ada")); err != nil {
					return err
				}
				if i%2 == 0 {
					return abort
				}
				return nil
			})
			if err != nil && !errors.Is(err, abort) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	orders, err := order.List(t.Context(), pool, order.Filter{UserID: "ada", Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	if len(orders) != 20 {
		t.Fatalf("%d orders, want the 20 that committed", len(orders))
	}
	for i, o := range orders {
		if want := int64(20 - i); o.UserSeq != want {
			t.Errorf("order %d of the list has user_seq %d, want %d", i, o.UserSeq, want)
		}
	}
}

// TestStatusChangesOnlyAsAllowed tries every pair of statuses, and wants Go's rule and Postgres's CHECK to agree.
func TestStatusChangesOnlyAsAllowed(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	path := map[order.Status][]order.Status{
		order.Pending: {}, order.Completed: {order.Completed}, order.Shipped: {order.Completed, order.Shipped},
		order.Rejected: {order.Rejected}, order.PaymentFailed: {order.PaymentFailed}, order.Cancelled: {order.Cancelled},
		order.Refunded: {order.Completed, order.Refunded},
	}
	for _, from := range order.Statuses() {
		for _, to := range order.Statuses() {
			o := insert(t, pool, newOrder("ada"))
			now := order.Pending
			for _, next := range path[from] {
				if err := setStatus(t.Context(), pool, o.ID, now, next); err != nil {
					t.Fatal(err)
				}
				now = next
			}
			err := setStatus(t.Context(), pool, o.ID, from, to)
			if allowed := from.CanBecome(to); allowed && err != nil || !allowed && !errors.Is(err, order.ErrStatus) {
				t.Errorf("SetStatus from %s to %s = %v, allowed %v", from, to, err, allowed)
			}
			_, err = pool.Exec(t.Context(), `
				INSERT INTO order_history (order_id, version, kind, from_status, to_status)
				VALUES ($1, 1000, 'status', $2, $3)`, o.ID, string(from), string(to))
			if allowed := from.CanBecome(to); allowed != (err == nil) {
				t.Errorf("a history row from %s to %s: %v, want it to be possible: %v", from, to, err, allowed)
			}
		}
	}
}

func TestEveryChangeIsAVersionAndAHistoryRow(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	o := insert(t, pool, newOrder("ada"))
	for _, step := range [][2]order.Status{{order.Pending, order.Completed}, {order.Completed, order.Shipped}} {
		if err := setStatus(t.Context(), pool, o.ID, step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
	got, err := order.ByID(t.Context(), pool, o.ID)
	if err != nil || got.Version != 3 || got.Status != order.Shipped || got.Reason != "because" {
		t.Errorf("order = version %d, %s, %q, %v; want 3, shipped, because", got.Version, got.Status, got.Reason, err)
	}
	entries, err := order.History(t.Context(), pool, o.ID)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for i, e := range entries {
		kinds = append(kinds, e.Kind+" "+string(e.From)+">"+string(e.To))
		if e.Version != int64(i+1) {
			t.Errorf("entry %d has version %d", i, e.Version)
		}
	}
	if diff := cmp.Diff([]string{"placed >pending", "status pending>completed", "status completed>shipped"}, kinds); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

func TestSetStatusesJudgesEachOrderByItself(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	fine, cancelled, shipped := insert(t, pool, newOrder("a")), insert(t, pool, newOrder("b")), insert(t, pool, newOrder("c"))
	inTx(t, pool, func(tx pgx.Tx) error {
		_, err := order.RequestCancel(t.Context(), tx, cancelled.ID)
		return err
	})
	if err := setStatus(t.Context(), pool, shipped.ID, order.Pending, order.Rejected); err != nil {
		t.Fatal(err)
	}
	var errs []error
	inTx(t, pool, func(tx pgx.Tx) (err error) {
		errs, err = order.SetStatuses(t.Context(), tx, []order.Change{
			{ID: shipped.ID, From: order.Pending, To: order.Completed},
			{ID: fine.ID, From: order.Pending, To: order.Completed},
			{ID: uuid.New(), From: order.Pending, To: order.Completed},
			{ID: cancelled.ID, From: order.Pending, To: order.Completed},
		})
		return err
	})
	for i, want := range []error{order.ErrStatus, nil, order.ErrNotFound, order.ErrCancelRequested} {
		if !errors.Is(errs[i], want) {
			t.Errorf("change %d: %v, want %v", i, errs[i], want)
		}
	}
	if o, err := order.ByID(t.Context(), pool, fine.ID); err != nil || o.Status != order.Completed {
		t.Errorf("the order without a mistake is %s, %v; want completed", o.Status, err)
	}
}

// TestCancelOrCompletionWinsNeverBoth races the two under the row lock.
func TestCancelOrCompletionWinsNeverBoth(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for range 60 {
		o := insert(t, pool, newOrder("ada"))
		var completed, cancelled error
		var race sync.WaitGroup
		race.Go(func() { completed = setStatus(t.Context(), pool, o.ID, order.Pending, order.Completed) })
		race.Go(func() {
			cancelled = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				_, err := order.RequestCancel(t.Context(), tx, o.ID)
				return err
			})
		})
		race.Wait()
		won := completed == nil && errors.Is(cancelled, order.ErrStatus)
		lost := cancelled == nil && errors.Is(completed, order.ErrCancelRequested)
		if won == lost {
			t.Fatalf("complete = %v, cancel = %v; want exactly one to win", completed, cancelled)
		}
	}
}

func TestASecondCancelGetsTheFirstOnesAnswer(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	o := insert(t, pool, newOrder("ada"))
	var first, second order.Cancel
	inTx(t, pool, func(tx pgx.Tx) (err error) { first, err = order.RequestCancel(t.Context(), tx, o.ID); return err })
	if err := setStatus(t.Context(), pool, o.ID, order.Pending, order.Cancelled); err != nil {
		t.Fatal(err)
	}
	inTx(t, pool, func(tx pgx.Tx) (err error) { second, err = order.RequestCancel(t.Context(), tx, o.ID); return err })
	if !first.First || second.First || !first.RequestedAt.Equal(second.RequestedAt) {
		t.Errorf("cancels = %+v and %+v; want the second to repeat the first", first, second)
	}
}

func TestPagesOfAListHoldEveryOrderOnce(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	want := map[uuid.UUID]bool{}
	for i := range 23 {
		o := insert(t, pool, newOrder([]string{"ada", "ben"}[i%2]))
		want[o.ID] = true
	}
	got := map[uuid.UUID]bool{}
	f := order.Filter{Limit: 5}
	for {
		page, err := order.List(t.Context(), pool, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page {
			if got[o.ID] {
				t.Errorf("order %s is on two pages", o.ID)
			}
			got[o.ID] = true
			f.AfterID = o.ID
		}
		if len(page) < f.Limit {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("orders on all pages (-want +got):\n%s", diff)
	}
	pending, err := order.List(t.Context(), pool, order.Filter{Status: order.Pending, Limit: 100})
	if err != nil || len(pending) != 23 {
		t.Errorf("List of pending orders = %d, %v; want 23", len(pending), err)
	}
}

// TestTheServiceMayNotRewriteWhatHappened checks the grants that the guarantees rest on.
func TestTheServiceMayNotRewriteWhatHappened(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	insert(t, pool, newOrder("ada"))
	for _, statement := range []string{
		`UPDATE order_history SET reason = 'nothing happened'`,
		`DELETE FROM order_history`,
		`DELETE FROM orders`,
		`UPDATE orders SET total = 1`,
		`UPDATE order_items SET unit_price = 1`,
		`UPDATE products SET unit_price = 1`,
		`UPDATE stock SET initial = 5`,
		`UPDATE payments SET amount = 1`,
		`UPDATE idempotency_keys SET body = ''`,
		`INSERT INTO api_keys (hash, role, name) VALUES (sha256(''), 'service', 'me')`,
		`SELECT payload FROM outbox`,
	} {
		if _, err := pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("%s: done, want permission denied", statement)
		}
	}
}

func TestStockIsNeverLostOrInvented(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for _, statement := range []string{
		`UPDATE stock SET available = available - 1 WHERE sku = 'sku-mug'`,
		`UPDATE stock SET reserved = reserved + 1 WHERE sku = 'sku-mug'`,
		`UPDATE stock SET available = -1, reserved = 1 WHERE sku = 'sku-sold-out'`,
	} {
		if _, err := pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("%s: done, want the CHECK to refuse it", statement)
		}
	}
}

func TestSeedCatalogCanRunAgain(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for range 2 {
		if err := order.SeedCatalog(t.Context(), db.Pool); err != nil {
			t.Fatal(err)
		}
	}
	products, err := order.Products(t.Context(), db.RolePool("orders"), "", 100)
	if err != nil || len(products) != len(order.Catalog()) {
		t.Errorf("Products = %d, %v; want %d", len(products), err, len(order.Catalog()))
	}
}
