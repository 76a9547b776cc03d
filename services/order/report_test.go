package order

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/saga"
)

// reportOf is what the provider reports of an order's payment.
func (w *world) reportOf(t testing.TB, e event.OrderPlaced, change func(*event.PaymentReported)) *kgo.Record {
	t.Helper()
	r := event.PaymentReported{
		OrderID: e.OrderID, UserID: e.UserID, Provider: "sandbox", IntentID: w.intent(t, e), Status: "succeeded", Amount: e.Total,
		Currency: e.Currency, ReportedAt: time.Now(),
	}
	if change != nil {
		change(&r)
	}
	return record(t, r)
}

// intent is what the order's saga has stored of its payment.
func (w *world) intent(t testing.TB, e event.OrderPlaced) string {
	t.Helper()
	return w.text(t, `SELECT coalesce((SELECT saved ->> 'intent_id' FROM orders.saga_journal WHERE saga_id = $1 AND name = $2 AND NOT undo), '')`,
		e.OrderID, stepCharge)
}

// awaitFate waits until the consumer has decided on the record.
func (w *world) awaitFate(t testing.TB, r *kgo.Record, state string) {
	t.Helper()
	var id string
	for _, h := range r.Headers {
		if h.Key == "ce_id" {
			id = string(h.Value)
		}
	}
	eventually(t, "the fate of "+id, func() error {
		return want("state", w.text(t, `SELECT coalesce((SELECT state FROM orders.processed_messages WHERE event_id = $1), 'none')`, id), state)
	})
}

// mute answers nothing but what creates an intent, and lets the test see when the saga has begun to ask.
func mute(asked *atomic.Bool, confirms bool) func(w *world, next http.Handler) http.Handler {
	return func(_ *world, next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "/payment_intents"):
				next.ServeHTTP(rw, r)
			case strings.HasSuffix(r.URL.Path, "/confirm") && confirms:
				next.ServeHTTP(discard{}, r)
				rw.WriteHeader(http.StatusBadGateway)
			default:
				asked.Store(asked.Load() || r.Method == http.MethodGet)
				rw.WriteHeader(http.StatusServiceUnavailable)
			}
		})
	}
}

// discard is an answer that is lost.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// The provider answers no question any more: what it reports by itself is the only answer there is.
func TestAReportSettlesAChargeThatCannotBeAskedFor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, report            string
		confirms                bool
		status, payment, reason string
	}{
		{"charged", "succeeded", true, "completed", "charged", ""},
		{"declined", "declined", false, "payment_failed", "declined", reasonDeclined},
		{"cancelled", "canceled", false, "payment_failed", "cancelled", reasonNoAnswer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Bool
			w := newWorld(t, map[string]int64{"pen": 10}, mute(&asked, tt.confirms))
			e := w.place(t, "ann", "pm_ok", item("pen", 2))
			w.broker.Produce(t, record(t, e))
			eventually(t, "the saga asks", func() error { return want("asked", asked.Load(), true) })
			pending := w.reportOf(t, e, func(r *event.PaymentReported) { r.Status = "processing" })
			first := w.reportOf(t, e, func(r *event.PaymentReported) { r.Status = tt.report })
			again := w.reportOf(t, e, func(r *event.PaymentReported) { r.Status = tt.report })
			w.broker.Produce(t, pending, first, again)
			w.awaitStatus(t, e.OrderID, tt.status)
			for _, r := range []*kgo.Record{pending, first, again} {
				w.awaitFate(t, r, "done")
			}
			if got := w.text(t, `SELECT p.status || ' ' || (p.intent_id IS NOT NULL) || ' ' || o.reason FROM orders.payments p JOIN orders.orders o ON o.id = p.order_id WHERE o.id = $1`,
				e.OrderID); got != fmt.Sprintf("%s true %s", tt.payment, tt.reason) {
				t.Errorf("payment = %q, want %s", got, tt.payment)
			}
			w.told(t, e.OrderID)
		})
	}
}

// F22: a charge that lands after the order was called off, and is told of as often as the provider likes.
func TestAReportOfALateChargeIsRefundedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 10}, nil)
	e := w.place(t, "ann", "pm_timeout", item("pen", 2))
	w.broker.Produce(t, record(t, e))
	w.awaitStatus(t, e.OrderID, "payment_failed")
	// A provider that breaks its word about what it has cancelled: the intent of the order is charged all the same.
	intent := w.charge(t, e.OrderID.String(), e.Total)
	w.exec(t, `UPDATE orders.saga_journal SET saved = jsonb_build_object('intent_id', $2::text) WHERE saga_id = $1 AND name = $3`, e.OrderID, intent, stepCharge)
	for range 3 {
		r := w.reportOf(t, e, nil)
		w.broker.Produce(t, r)
		w.awaitFate(t, r, "done")
	}
	eventually(t, "the late charge is refunded", func() error {
		return want("the provider's journal", w.outside(t, e.OrderID), "cancel 2000, charge 2000, refund 2000")
	})
	eventually(t, "the saga is over", func() error {
		h, err := saga.Load(t.Context(), w.pool, e.OrderID)
		if err != nil {
			return err
		}
		return want("state", h.Instance.State, saga.Compensated)
	})
	last := w.reportOf(t, e, nil)
	w.broker.Produce(t, last)
	w.awaitFate(t, last, "done")
	w.told(t, e.OrderID)
	if got := w.outside(t, e.OrderID); got != "cancel 2000, charge 2000, refund 2000" {
		t.Errorf("the provider did %q, want one refund", got)
	}
	if got := w.text(t, `SELECT status FROM orders.payments WHERE order_id = $1`, e.OrderID); got != "refunded" {
		t.Errorf("payment = %s, want refunded", got)
	}
}

func TestAReportSettlesARefundThatCannotBeAskedFor(t *testing.T) {
	t.Parallel()
	var refunded atomic.Pointer[string]
	w := newWorld(t, map[string]int64{"pen": 10}, func(_ *world, next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/refunds" {
				next.ServeHTTP(discard{}, r)
				refunded.Store(new(string))
			}
			if refunded.Load() != nil {
				rw.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(rw, r)
		})
	})
	e := w.place(t, "ann", "pm_ok", item("pen", 2))
	w.broker.Produce(t, record(t, e))
	w.awaitStatus(t, e.OrderID, "completed")
	w.requestRefund(t, e)
	eventually(t, "the refund is sent", func() error { return want("sent", refunded.Load() != nil, true) })
	w.broker.Produce(t, w.reportOf(t, e, func(r *event.PaymentReported) { r.RefundID = "re_1" }))
	w.awaitStatus(t, e.OrderID, "refunded")
	if got := w.text(t, `SELECT status || ' ' || refund_id FROM orders.payments WHERE order_id = $1`, e.OrderID); got != "refunded re_1" {
		t.Errorf("payment = %q, want it refunded by re_1", got)
	}
}

// report hands a report of an order's charge, or of its refund, to the consumer's handler.
func (w *till) report(t testing.TB, e event.OrderPlaced, refundID string) {
	t.Helper()
	said := event.PaymentReported{
		OrderID: e.OrderID, UserID: e.UserID, Provider: "sandbox", IntentID: w.intent(t, e), Status: "succeeded", Amount: e.Total,
		Currency: e.Currency, RefundID: refundID, ReportedAt: time.Now(),
	}
	w.tx(t, func(tx pgx.Tx) error {
		return reported(t.Context(), tx, inbox.Event[event.PaymentReported]{Data: said})
	})
}

// refund pays an order back.
func (w *till) refund(t testing.TB, e event.OrderPlaced) {
	t.Helper()
	refund := w.refundOf(t, e)
	w.tx(t, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, refund) })
	stop := w.run(t, 1, swift())
	w.awaitStatus(t, e.OrderID, "refunded")
	stop()
}

// refundID is the provider's id of an order's refund.
func (w *till) refundID(t testing.TB, e event.OrderPlaced) string {
	t.Helper()
	return w.text(t, `SELECT coalesce(refund_id, '') FROM orders.payments WHERE order_id = $1`, e.OrderID)
}

// The money went back long ago, and the order has its end. What the provider still has to say of it is no late success that would
// have to be undone, also where nobody has ever heard of the charge.
func TestAReportOfARefundThatIsKnownChangesNothing(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 10})
	cancelled, stopped, refunded := w.placed(t, "pm_ok"), w.placed(t, "pm_lost_answer"), w.placed(t, "pm_ok")
	w.front.creating = func(id uuid.UUID) {
		if id != cancelled.OrderID {
			return
		}
		if err := w.accept(context.WithoutCancel(t.Context()), id); err != nil {
			t.Errorf("cancel order %s: %v", id, err)
		}
	}
	var silent atomic.Bool
	silent.Store(true)
	w.front.fault = func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if silent.Load() && r.Method == http.MethodGet {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(rw, r)
	}
	stop := w.run(t, 1, swift())
	w.start(t, stopped)
	eventually(t, "a charge of which nobody knows", func() error {
		return want("its state", w.text(t, `
			SELECT coalesce((SELECT state FROM orders.saga_journal WHERE saga_id = $1 AND name = $2 AND NOT undo), '')`, stopped.OrderID, stepCharge), "unknown")
	})
	stop()
	silent.Store(false)
	w.tx(t, func(tx pgx.Tx) error {
		h, err := saga.Load(t.Context(), tx, stopped.OrderID)
		if err != nil {
			return err
		}
		return saga.Compensate(t.Context(), tx, stopped.OrderID, saga.Operator{By: "ops", Reason: "stop it", Rev: h.Instance.Rev})
	})
	stop = w.run(t, 1, swift())
	w.start(t, cancelled)
	w.awaitStatus(t, cancelled.OrderID, "cancelled")
	w.awaitStatus(t, stopped.OrderID, "payment_failed")
	stop()
	w.complete(t, refunded)
	w.refund(t, refunded)
	before := w.rows(t)
	for status, e := range map[string]event.OrderPlaced{"cancelled": cancelled, "payment_failed": stopped, "refunded": refunded} {
		id := w.refundID(t, e)
		for range 2 {
			w.report(t, e, id)
			if diff := cmp.Diff(before, w.rows(t)); diff != "" {
				t.Errorf("a report of the refund %q of an order that is %s changed rows (-was +is):\n%s", id, status, diff)
			}
		}
	}
	for status, e := range map[string]event.OrderPlaced{"cancelled": cancelled, "refunded": refunded} {
		w.report(t, e, "")
		if diff := cmp.Diff(before, w.rows(t)); diff != "" {
			t.Errorf("a late report of the charge of an order that is %s changed rows (-was +is):\n%s", status, diff)
		}
	}
	w.check(t, stopped.OrderID, "payment_failed", chargedBack)
	w.check(t, cancelled.OrderID, "cancelled", chargedBack)
	w.checkRefund(t, refunded)
	w.judge(t)
}

// The provider refuses a refund, and then somebody makes it there by hand. The report of it changes nothing, and a refund that is
// asked for again finds it made.
func TestARefundThatWasMadeAtTheProviderIsReportedEarlyAndFound(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 10})
	e := w.placed(t, "pm_ok")
	var disputed atomic.Bool
	disputed.Store(true)
	w.front.fault = func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/v1/refunds" && disputed.Load() {
			rw.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		next.ServeHTTP(rw, r)
	}
	w.complete(t, e)
	refused := w.refundOf(t, e)
	w.tx(t, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, refused) })
	stop := w.run(t, 1, swift())
	eventually(t, "the first refund", func() error {
		return want("its state", w.text(t, `SELECT state FROM orders.refunds WHERE id = $1`, refused.ID), "refused")
	})
	stop()
	disputed.Store(false)
	made := w.post(t, "/v1/refunds", map[string]any{"payment_intent": w.intent(t, e)})
	unchanged := func(when string) {
		t.Helper()
		before := w.rows(t)
		w.report(t, e, made)
		if diff := cmp.Diff(before, w.rows(t)); diff != "" {
			t.Errorf("a report of a refund that %s changed rows (-was +is):\n%s", when, diff)
		}
	}
	unchanged("was refused when it was asked for")
	refund := w.refundOf(t, e)
	w.tx(t, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, refund) })
	unchanged("has not been sent")
	stop = w.run(t, 1, swift())
	w.awaitStatus(t, e.OrderID, "refunded")
	stop()
	if got := w.refundID(t, e); got != made {
		t.Errorf("the payment was refunded by %q, want %q", got, made)
	}
	w.checkRefund(t, e)
	w.judge(t)
}

// What a report says changes nothing unless it is about the money of the order's own charge.
func TestReportsThatDoNotFitTheOrderChangeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 100}, nil)
	paid := func(user string) event.OrderPlaced {
		e := w.place(t, user, "pm_ok", item("pen", 1))
		w.broker.Produce(t, record(t, e))
		w.awaitStatus(t, e.OrderID, "completed")
		return e
	}
	rejected := w.place(t, "rejected", "pm_ok", item("pen", 101))
	w.broker.Produce(t, record(t, rejected))
	w.awaitStatus(t, rejected.OrderID, "rejected")
	for _, tt := range []struct {
		name, fate string
		order      event.OrderPlaced
		change     func(*event.PaymentReported)
	}{
		{"another amount", "dead " + classInvalid, paid("amount"), func(r *event.PaymentReported) { r.Amount = 1 }},
		{"another currency", "dead " + classInvalid, paid("currency"), func(r *event.PaymentReported) { r.Currency = "JPY" }},
		{"a second charge", "dead " + classInvalid, paid("twice"), func(r *event.PaymentReported) { r.IntentID = "pi_other" }},
		{"another intent that moved nothing", "discarded", paid("left"), func(r *event.PaymentReported) { r.IntentID, r.Status = "pi_other", "canceled" }},
		{"an order that nothing was charged for", "discarded", rejected, func(r *event.PaymentReported) { r.IntentID = "pi_other" }},
		{"a decline of what was charged", "done", paid("declined"), func(r *event.PaymentReported) { r.Status = "declined" }},
		{"an order nobody placed", "held " + classUnknownOrder, event.OrderPlaced{OrderID: uuid.Must(uuid.NewV7()), UserID: "ghost"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := w.reportOf(t, tt.order, tt.change)
			w.broker.Produce(t, r)
			if state, class, parked := strings.Cut(tt.fate, " "); parked {
				w.awaitFate(t, r, "parked")
				eventually(t, "the message is parked", func() error {
					return want("fate", w.text(t, `SELECT coalesce((SELECT state || ' ' || error_class FROM orders.parked_messages WHERE key = $1), 'none')`,
						tt.order.UserID), state+" "+class)
				})
			} else {
				w.awaitFate(t, r, tt.fate)
			}
			if tt.order.Total == 0 {
				return
			}
			was := map[bool]string{true: "rejected none", false: "completed charged"}[tt.order.UserID == "rejected"]
			if got := w.text(t, `SELECT o.status || ' ' || coalesce(p.status, 'none') FROM orders.orders o LEFT JOIN orders.payments p ON p.order_id = o.id WHERE o.id = $1`,
				tt.order.OrderID); got != was {
				t.Errorf("order and payment are %q, want %q", got, was)
			}
		})
	}
}
