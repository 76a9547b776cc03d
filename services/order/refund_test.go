package order

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/saga"
)

// requestRefund does what the api does.
func (w *world) requestRefund(t *testing.T, e event.OrderPlaced) order.Refund {
	t.Helper()
	var r order.Refund
	w.tx(t, func(tx pgx.Tx) (err error) {
		r, err = order.RequestRefund(t.Context(), tx, e.OrderID, "it arrived broken", "support")
		return err
	})
	requested := record(t, event.OrderRefundRequested{RefundID: r.ID, OrderID: e.OrderID, UserID: e.UserID, RequestedAt: r.RequestedAt})
	w.broker.Produce(t, requested)
	return r
}

func (w *world) awaitRefund(t *testing.T, r order.Refund, state string) {
	t.Helper()
	eventually(t, "refund "+r.ID.String(), func() error {
		return want("its state", w.text(t, `SELECT state FROM orders.refunds WHERE id = $1`, r.ID), state)
	})
}

// Whatever becomes of the first request for it, the money goes back once.
func TestARefundIsPaidOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		first func(rw http.ResponseWriter, r *http.Request, next http.Handler) // what happens to the first request for a refund
	}{
		{"the provider answers", func(rw http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(rw, r) }},
		{"it refunds and its answer is lost", func(_ http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}},
		{"it refunds and says that it failed", func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(httptest.NewRecorder(), r)
			rw.WriteHeader(http.StatusBadGateway)
		}},
		{"it fails", func(rw http.ResponseWriter, _ *http.Request, _ http.Handler) {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			w := newWorld(t, map[string]int64{"pen": 10}, func(_ *world, next http.Handler) http.Handler {
				return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/v1/refunds" && asked.Add(1) == 1 {
						tt.first(rw, r, next)
						return
					}
					next.ServeHTTP(rw, r)
				})
			})
			e := w.place(t, "ann", "pm_ok", item("pen", 2))
			w.broker.Produce(t, record(t, e))
			w.awaitStatus(t, e.OrderID, "completed")
			first, again := w.requestRefund(t, e), w.requestRefund(t, e)
			if !first.First || again.First || again.ID != first.ID {
				t.Errorf("a second request is %+v, want the first one's %+v", again, first)
			}
			w.awaitStatus(t, e.OrderID, "refunded")
			if got := w.outside(t, e.OrderID); got != "charge 2000, refund 2000" {
				t.Errorf("the provider did %q, want one charge and one refund", got)
			}
			if got := w.text(t, `
				SELECT p.status || ', ' || r.state || ' by ' || r.requested_by || ', ' || o.reason
				FROM orders.payments p JOIN orders.refunds r USING (order_id) JOIN orders.orders o ON o.id = p.order_id
				WHERE o.id = $1 AND p.refund_id IS NOT NULL`, e.OrderID); got != "refunded, paid by support, it arrived broken" {
				t.Errorf("the order's rows say %q", got)
			}
			if got := w.text(t, `SELECT count(*)::text FROM orders.outbox WHERE type = 'order.refunded.v1' AND topic = 'orders.completed' AND key = 'ann'`); got != "1" {
				t.Errorf("%s messages tell of the refund, want 1", got)
			}
		})
	}
}

func TestARefundThatTheProviderRefusesMayBeAskedForAgain(t *testing.T) {
	t.Parallel()
	var willing atomic.Bool
	w := newWorld(t, map[string]int64{"pen": 10}, func(_ *world, next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/refunds" && !willing.Load() {
				rw.WriteHeader(http.StatusUnprocessableEntity)
				_, _ = io.WriteString(rw, `{"code":"disputed","message":"the charge is disputed"}`)
				return
			}
			next.ServeHTTP(rw, r)
		})
	})
	e := w.place(t, "ann", "pm_ok", item("pen", 2))
	w.broker.Produce(t, record(t, e))
	w.awaitStatus(t, e.OrderID, "completed")
	w.awaitRefund(t, w.requestRefund(t, e), "refused")
	if got := w.text(t, `SELECT refusal FROM orders.refunds`); !strings.Contains(got, "422 disputed") {
		t.Errorf("the refusal is %q, want the provider's", got)
	}
	if got := w.status(t, e.OrderID); got != "completed" {
		t.Errorf("order is %s after a refused refund, want completed", got)
	}
	willing.Store(true)
	again := w.requestRefund(t, e)
	w.awaitRefund(t, again, "paid")
	w.awaitStatus(t, e.OrderID, "refunded")
	if got := w.outside(t, e.OrderID); !again.First || got != "charge 2000, refund 2000" {
		t.Errorf("the provider did %q, want one charge and one refund", got)
	}
}

// An order whose charge a person has passed over has nothing to pay back: its refund is refused, and its user's next order goes
// on.
func TestARefundOfAnOrderThatWasNotChargedIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 10}, func(_ *world, next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/confirm") {
				rw.Header().Set("Content-Type", "application/json")
				rw.WriteHeader(http.StatusConflict)
				_, _ = io.WriteString(rw, `{"code":"idempotency_key_reused","message":"another request"}`)
				return
			}
			next.ServeHTTP(rw, r)
		})
	})
	e := w.place(t, "ann", "pm_ok", item("pen", 2))
	w.broker.Produce(t, record(t, e))
	var stuck *saga.History
	eventually(t, "a stuck saga", func() (err error) {
		if stuck, err = saga.Load(t.Context(), w.pool, e.OrderID); err != nil {
			return err
		}
		return want("its state", stuck.Instance.State, saga.StuckState)
	})
	w.tx(t, func(tx pgx.Tx) error {
		return saga.Skip(t.Context(), tx, e.OrderID, saga.Operator{By: "ops", Reason: "paid in cash", Rev: stuck.Instance.Rev})
	})
	w.awaitStatus(t, e.OrderID, "completed")
	w.awaitRefund(t, w.requestRefund(t, e), "refused")
	if got := w.text(t, `SELECT refusal FROM orders.refunds`); got != reasonNotCharged {
		t.Errorf("the refusal is %q, want %q", got, reasonNotCharged)
	}
	if got := w.text(t, `SELECT count(*)::text FROM orders.inbox_holds`); got != "0" {
		t.Errorf("%s keys are held, want none", got)
	}
}

// A refund that a person has made by hand and passed over counts as paid.
func TestARefundThatAPersonMadeIsNoted(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"pen": 1})
	e := s.place(t, "ann", "pm_ok", item("pen", 1))
	s.tx(t, func(tx pgx.Tx) error {
		if err := order.SetStatus(t.Context(), tx, e.OrderID, order.Pending, order.Completed, ""); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `
			INSERT INTO payments (order_id, intent_id, idempotency_key, amount, currency, status) VALUES ($1, 'pi_1', 'k', 1000, 'EUR', 'charged')`, e.OrderID)
		if err != nil {
			return err
		}
		r, err := order.RequestRefund(t.Context(), tx, e.OrderID, "broken", "support")
		if err != nil {
			return err
		}
		data, err := json.Marshal(refunding{OrderID: e.OrderID, IntentID: "pi_1", Total: 1000, Currency: "EUR", Reason: "broken"})
		if err != nil {
			return err
		}
		return refunded(t.Context(), tx, &saga.Instance{ID: r.ID, Lane: "ann", Data: data})
	})
	if got := s.text(t, `
		SELECT o.status || ' ' || p.status || ' ' || r.state
		FROM orders.orders o JOIN orders.payments p ON p.order_id = o.id JOIN orders.refunds r ON r.order_id = o.id`); got != "refunded refunded paid" {
		t.Errorf("order, payment and refund are %s, want refunded refunded paid", got)
	}
}

// What is refunded keeps its stock until the warehouse says whether it was handed over.
func TestARefundedOrdersStockGoesWhereItsShipmentWent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 10}, nil)
	shipped, never := w.place(t, "ann", "pm_ok", item("pen", 2)), w.place(t, "bob", "pm_ok", item("pen", 3))
	for _, e := range []event.OrderPlaced{shipped, never} {
		w.broker.Produce(t, record(t, e))
		w.awaitStatus(t, e.OrderID, "completed")
		w.requestRefund(t, e)
		w.awaitStatus(t, e.OrderID, "refunded")
	}
	if err := want("pens", w.stock(t, "pen"), [3]int64{5, 5, 0}); err != nil {
		t.Error(err)
	}
	cancelled := event.ShipmentCancelled{ShipmentID: uuid.Must(uuid.NewV7()), OrderID: never.OrderID, UserID: "bob", CancelledAt: time.Now()}
	w.broker.Produce(t,
		record(t, event.ShipmentCreated{ShipmentID: uuid.Must(uuid.NewV7()), OrderID: shipped.OrderID, UserID: "ann", ShippedAt: time.Now()}),
		record(t, cancelled), record(t, cancelled))
	eventually(t, "stock", func() error {
		return errors.Join(want("pens", w.stock(t, "pen"), [3]int64{8, 0, 2}),
			want("held keys", w.text(t, `SELECT count(*)::text FROM orders.inbox_holds`), "0"))
	})
}

func TestOnlyAnOrderThatIsPaidForIsRefunded(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"pen": 1})
	e := s.place(t, "ann", "pm_ok", item("pen", 1))
	for id, wanted := range map[uuid.UUID]error{e.OrderID: order.ErrStatus, uuid.Must(uuid.NewV7()): order.ErrNotFound} {
		err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
			_, err := order.RequestRefund(t.Context(), tx, id, "broken", "support")
			return err
		})
		if !errors.Is(err, wanted) {
			t.Errorf("RequestRefund = %v, want %v", err, wanted)
		}
	}
}

// A person settles a refund only where one was sent.
func TestPaidBackNeedsARefundThatWasSent(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"pen": 1})
	e := s.place(t, "ann", "pm_ok", item("pen", 1))
	s.tx(t, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, start(e)) })
	err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		_, err := PaidBack(t.Context(), tx, e.OrderID, "re_1")
		return err
	})
	if !errors.Is(err, ErrNoCharge) {
		t.Errorf("PaidBack of an order's own saga = %v, want ErrNoCharge", err)
	}
}
