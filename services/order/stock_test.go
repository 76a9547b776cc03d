package order

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/saga"
)

// reserveAll runs the step over a batch and returns, per order, "" or why it was refused.
func (s *shop) reserveAll(t testing.TB, in ...*saga.Instance) []string {
	t.Helper()
	var errs []error
	s.tx(t, func(tx pgx.Tx) (err error) {
		errs, err = reserve(t.Context(), tx, in)
		return err
	})
	reasons := make([]string, len(in))
	for i, err := range errs {
		if err != nil {
			reasons[i] = err.Error()
		}
	}
	return reasons
}

func (s *shop) releaseAll(t testing.TB, in ...*saga.Instance) {
	t.Helper()
	s.tx(t, func(tx pgx.Tx) error {
		errs, err := release(t.Context(), tx, in)
		return errors.Join(append(errs, err)...)
	})
}

func TestReserveTakesAllLinesOfAnOrderOrNone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		stock map[string]int64
		batch [][]event.Item
		want  []string
		left  map[string]int64
	}{
		{
			"the last unit is sold", map[string]int64{"a": 2},
			[][]event.Item{{item("a", 2)}}, []string{""}, map[string]int64{"a": 0},
		},
		{
			"one unit too many is refused and takes nothing", map[string]int64{"a": 2},
			[][]event.Item{{item("a", 3)}}, []string{"out of stock: a"}, map[string]int64{"a": 2},
		},
		{
			"a line that is there is not taken when another is not", map[string]int64{"a": 5, "b": 0},
			[][]event.Item{{item("a", 1), item("b", 1)}}, []string{"out of stock: b"}, map[string]int64{"a": 5, "b": 0},
		},
		{
			"a batch that wants more than there is takes exactly what there is, first come first served", map[string]int64{"a": 3},
			[][]event.Item{{item("a", 2)}, {item("a", 2)}, {item("a", 1)}, {item("a", 1)}},
			[]string{"", "out of stock: a", "", "out of stock: a"}, map[string]int64{"a": 0},
		},
		{
			"what a refused order would have taken goes to the next one", map[string]int64{"a": 1, "b": 0},
			[][]event.Item{{item("a", 1), item("b", 1)}, {item("a", 1)}}, []string{"out of stock: b", ""}, map[string]int64{"a": 0, "b": 0},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t, tt.stock)
			var batch []*saga.Instance
			for i, items := range tt.batch {
				batch = append(batch, instance(t, s.place(t, fmt.Sprint("user-", i), "pm_ok", items...)))
			}
			if diff := cmp.Diff(tt.want, s.reserveAll(t, batch...)); diff != "" {
				t.Errorf("reserve (-want +got):\n%s", diff)
			}
			for sku, left := range tt.left {
				if got, want := s.stock(t, sku), [3]int64{left, tt.stock[sku] - left, 0}; got != want {
					t.Errorf("stock of %s = %v, want %v", sku, got, want)
				}
			}
		})
	}
}

// F25: 1,000 orders for 10 units.
func TestAThousandOrdersForTenUnitsReserveExactlyTen(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"hot": 10})
	const orders, batch = 1000, 50
	instances := make([]*saga.Instance, orders)
	for i := range instances {
		instances[i] = instance(t, s.place(t, fmt.Sprint("user-", i), "pm_ok", item("hot", 1)))
	}
	s.warm(t, 6)
	var mu sync.Mutex
	reserved := 0
	var group errgroup.Group
	group.SetLimit(6)
	for i := 0; i < orders; i += batch {
		group.Go(func() error {
			return pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
				errs, err := reserve(t.Context(), tx, instances[i:i+batch])
				mu.Lock()
				defer mu.Unlock()
				for _, err := range errs {
					if err == nil {
						reserved++
					}
				}
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := s.stock(t, "hot"), [3]int64{0, 10, 0}; got != want || reserved != 10 {
		t.Errorf("after %d orders: stock = %v and %d reserved, want %v and 10", orders, got, reserved, want)
	}
	if got := s.text(t, `SELECT count(*)::text FROM orders.reservations WHERE state = 'held'`); got != "10" {
		t.Errorf("held reservations = %s, want 10", got)
	}
}

func TestReserveAfterItsReleaseIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"a": 5, "b": 5})
	late := instance(t, s.place(t, "ann", "pm_ok", item("a", 1), item("b", 2)))
	other := instance(t, s.place(t, "bob", "pm_ok", item("a", 1)))
	s.releaseAll(t, late)
	if diff := cmp.Diff([]string{reasonReleased, ""}, s.reserveAll(t, late, other)); diff != "" {
		t.Errorf("reserve after release (-want +got):\n%s", diff)
	}
	if a, b := s.stock(t, "a"), s.stock(t, "b"); a != [3]int64{4, 1, 0} || b != [3]int64{5, 0, 0} {
		t.Errorf("stock = %v, %v; want the other order's unit taken, and nothing else", a, b)
	}
}

func TestReleaseGivesBackOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"a": 5, "b": 5})
	in := instance(t, s.place(t, "ann", "pm_ok", item("a", 1), item("b", 2)))
	s.reserveAll(t, in)
	for range 3 {
		s.releaseAll(t, in)
	}
	if a, b := s.stock(t, "a"), s.stock(t, "b"); a != [3]int64{5, 0, 0} || b != [3]int64{5, 0, 0} {
		t.Errorf("stock after three releases = %v, %v; want all of it back, once", a, b)
	}
}

// F24: whichever comes first, nothing is held at the end.
func TestReserveAndReleaseAtOnceLeakNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"a": 50, "b": 50})
	s.warm(t, 2)
	for i := range 40 {
		in := instance(t, s.place(t, fmt.Sprint("user-", i), "pm_ok", item("a", 1), item("b", 1)))
		var group errgroup.Group
		for _, step := range []func(pgx.Tx) error{
			func(tx pgx.Tx) error { _, err := reserve(t.Context(), tx, []*saga.Instance{in}); return err },
			func(tx pgx.Tx) error { _, err := release(t.Context(), tx, []*saga.Instance{in}); return err },
		} {
			group.Go(func() error { return pgx.BeginFunc(t.Context(), s.pool, step) })
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := s.stock(t, "a"), s.stock(t, "b"); a != [3]int64{50, 0, 0} || b != [3]int64{50, 0, 0} {
		t.Errorf("stock = %v, %v; want all of it available", a, b)
	}
}

func TestBatchesThatWantTheSameProductsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	stock := map[string]int64{}
	var skus []string
	for i := range 8 {
		sku := fmt.Sprint("p", i)
		skus, stock[sku] = append(skus, sku), 10_000
	}
	s := newShop(t, stock)
	s.warm(t, 6)
	work := make([][][]*saga.Instance, 6) // batches by worker
	for worker := range work {
		random := rand.New(rand.NewPCG(1, uint64(worker)))
		for b := range 6 {
			var batch []*saga.Instance
			for i := range 8 {
				var items []event.Item
				for _, p := range random.Perm(len(skus))[:3] {
					items = append(items, item(skus[p], 1))
				}
				batch = append(batch, instance(t, s.place(t, fmt.Sprintf("user-%d-%d-%d", worker, b, i), "pm_ok", items...)))
			}
			work[worker] = append(work[worker], batch)
		}
	}
	var group errgroup.Group
	for _, batches := range work {
		group.Go(func() error {
			for _, batch := range batches {
				for _, step := range []saga.LocalBatchFunc{reserve, release} {
					err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
						_, err := step(t.Context(), tx, batch)
						return err
					})
					if err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	err := group.Wait()
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "40P01" {
		t.Fatalf("a deadlock: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, sku := range skus {
		if got := s.stock(t, sku); got != [3]int64{10_000, 0, 0} {
			t.Errorf("stock of %s = %v, want all of it available", sku, got)
		}
	}
}
