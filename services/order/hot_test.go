package order

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/event"
)

// deadlocks returns how many the database has seen. A session reports its last ones when it ends, so the shop's are ended.
func (s *shop) deadlocks(t testing.TB) string {
	t.Helper()
	s.pool.Close()
	eventually(t, "the service's sessions end", func() error {
		return want("sessions", s.text(t, `
			SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND usename = 'orders'`), "0")
	})
	return s.text(t, `SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()`)
}

// F25: 1,000 orders for 10 units, from the saga's start to its end, by two engines.
func TestTwoEnginesSellExactlyWhatThereIs(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"hot": 10})
	w.placeMany(t, 1000, func(int) (string, []event.Item) { return "pm_ok", []event.Item{item("hot", 1)} })
	stop := w.run(t, 2, swift())
	ends := w.awaitAll(t)
	stop()
	if ends["completed"] != 10 || ends["rejected"] != 990 {
		t.Errorf("orders ended %v, want 10 completed and 990 rejected", ends)
	}
	if got, want := w.stock(t, "hot"), [3]int64{0, 10, 0}; got != want {
		t.Errorf("stock = %v, want %v", got, want)
	}
	w.invariants(t)
	if got := w.deadlocks(t); got != "0" {
		t.Errorf("%s deadlocks, want none", got)
	}
}

// Every order wants the hot product and two of the others, in its own order, and half of them give all of it back while the
// next ones take it. Exact to the last unit, no deadlock, and no queue at the hot row: a batch moves it once.
func TestHotProductsAreMovedInBatchesAndWithoutDeadlocks(t *testing.T) {
	t.Parallel()
	stock := map[string]int64{"hot": 10_000}
	var others []string
	for i := range 6 {
		sku := fmt.Sprint("p", i)
		others, stock[sku] = append(others, sku), 10_000
	}
	w := newTill(t, stock)
	random := rand.New(rand.NewPCG(1, 2))
	sold := map[string]int64{}
	w.placeMany(t, 200, func(i int) (string, []event.Item) {
		items := []event.Item{item("hot", 1)}
		for _, p := range random.Perm(len(others))[:2] {
			items = append(items, item(others[p], 1+random.Int64N(3)))
		}
		random.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
		method := []string{"pm_ok", "pm_declined"}[i%2]
		for _, it := range items {
			if method == "pm_ok" {
				sold[it.SKU] += it.Quantity
			}
		}
		return method, items
	})
	stop := w.run(t, 2, swift())
	ends := w.awaitAll(t)
	stop()
	if ends["completed"] != 100 || ends["payment_failed"] != 100 {
		t.Errorf("orders ended %v, want 100 completed and 100 payment_failed", ends)
	}
	for sku, initial := range stock {
		if got, want := w.stock(t, sku), [3]int64{initial - sold[sku], sold[sku], 0}; got != want {
			t.Errorf("stock of %s = %v, want %v", sku, got, want)
		}
	}
	w.invariants(t)
	if got := w.deadlocks(t); got != "0" {
		t.Errorf("%s deadlocks, want none", got)
	}
	// 200 reserves and 100 releases of three products each.
	var moves int64
	if err := w.DB.Pool.QueryRow(t.Context(), `
		SELECT n_tup_upd FROM pg_stat_user_tables WHERE schemaname = 'orders' AND relname = 'stock'`).Scan(&moves); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d updates of stock rows", moves)
	if moves == 0 || moves > 450 {
		t.Errorf("300 reserves and releases of three products each made %d updates of stock rows, want fewer than half of 900", moves)
	}
}

// An order whose payment cannot be settled holds its stock until its deadline, and no longer. Its user is told what became of the
// money.
func TestAReservationEndsWithItsSagasDeadline(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		sentence, outside, reason string
		charged                   bool // the confirm is carried out, and nobody hears of it
	}{
		{"not charged", calledOff, "the order took too long, and nothing was charged", false},
		{"charged", chargedBack, "the order took too long, and the payment was refunded", true},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			t.Parallel()
			w := newTill(t, map[string]int64{"pen": 10})
			var over atomic.Bool
			w.front.fault = func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
				confirm := strings.HasSuffix(r.URL.Path, "/confirm")
				if confirm && tt.charged {
					next.ServeHTTP(httptest.NewRecorder(), r)
				}
				if confirm || r.Method == http.MethodGet && !over.Load() {
					rw.WriteHeader(http.StatusBadGateway)
					return
				}
				next.ServeHTTP(rw, r)
			}
			e := w.placed(t, "pm_ok")
			w.run(t, 1, swift())
			w.start(t, e)
			eventually(t, "tries to charge", func() error {
				return want("tried again", w.text(t, `SELECT (attempt > 3 AND step_name = $2)::text FROM orders.saga_instances WHERE id = $1`, e.OrderID, stepCharge), "true")
			})
			if got, want := w.stock(t, "pen"), [3]int64{8, 2, 0}; got != want {
				t.Errorf("stock before the deadline = %v, want %v", got, want)
			}
			eventually(t, "the deadline ends it", func() error {
				// Again and again: the engine writes back what it has read.
				if _, err := w.DB.Pool.Exec(t.Context(), `
					UPDATE orders.saga_instances SET deadline_at = clock_timestamp() WHERE id = $1 AND finished_at IS NULL`, e.OrderID); err != nil {
					return err
				}
				return want("taken back", w.text(t, `SELECT coalesce(failure_kind = 'deadline', false)::text FROM orders.saga_instances WHERE id = $1`, e.OrderID), "true")
			})
			over.Store(true) // look-ups, which a refund may need
			w.awaitStatus(t, e.OrderID, "payment_failed")
			if got, want := w.stock(t, "pen"), [3]int64{10, 0, 0}; got != want {
				t.Errorf("stock after the deadline = %v, want %v", got, want)
			}
			if got := w.text(t, `SELECT reason FROM orders.orders WHERE id = $1`, e.OrderID); got != tt.reason {
				t.Errorf("the order's reason is %q, want %q", got, tt.reason)
			}
			w.check(t, e.OrderID, "payment_failed", tt.outside)
			w.judge(t)
		})
	}
}
