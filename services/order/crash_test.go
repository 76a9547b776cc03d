package order

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
	"github.com/orderflow-dev/orderflow/services/sandbox"
)

// whole runs every entry of the matrix; without it those run that differ most.
var whole = flag.Bool("order.whole", false, "crash at every point of every way that a payment can go")

// What the provider can have done for an order in the end. An intent that was created and not confirmed is nothing.
const (
	nothing     = ""
	paid        = "charge 2000"
	chargedBack = "charge 2000, refund 2000"
	calledOff   = "cancel 2000"
)

// way is one way that a payment can go.
type way struct {
	sentence, method string
	few              bool // it runs without -order.whole too
	asked            bool // the answer to the charge does not come, and the saga asks
	hold             int  // see front
	webhooks         bool // the sandbox sends them
	status           string
	outside          string
	cancelled        []string // outside, for an order whose cancel is accepted while its payment is made
}

func ways() []way {
	back, off := []string{chargedBack, nothing}, []string{calledOff, nothing}
	return []way{
		{"charged", "pm_ok", true, false, 0, false, "completed", paid, back},
		{"declined", "pm_declined", true, false, 0, false, "payment_failed", nothing, []string{nothing}},
		{"charged, no answer in time", "pm_timeout_charged", false, true, 0, false, "completed", paid, back},
		{"charged, the answer is lost", "pm_lost_answer", true, true, 0, false, "completed", paid, back},
		{"charged, answered with an error", "pm_error_charged", false, true, 0, false, "completed", paid, back},
		{"not charged, no answer in time", "pm_timeout", false, true, 0, false, "payment_failed", calledOff, off},
		{"not charged, answered with an error", "pm_error_once", false, true, 0, false, "completed", paid, back},
		{"charged slowly", "pm_slow", false, false, 0, false, "completed", paid, back},
		{"charged after the caller gave up", "pm_ok", false, true, 2, false, "completed", paid, back},
		{"a charge that arrives after it was called off", "pm_ok", false, true, 99, false, "payment_failed", calledOff, off},
		{"the webhook comes before the answer", "pm_webhook_first", false, false, 0, true, "completed", paid, back},
		{"the webhook comes and no answer", "pm_webhook_only", true, false, 0, true, "completed", paid, back},
		{"the webhook comes three times", "pm_webhook_repeated", false, false, 0, true, "completed", paid, back},
	}
}

// points are the crash points of the saga when it ends with a status, as sagatest.World has them. With webhooks it depends on
// what is faster, the webhook or the answer, so none are returned: they are among those of the other ways.
func (y way) points(status string) []string {
	if y.webhooks {
		return nil
	}
	points := []string{"commit claim", "commit running charge payment intent", "call charge payment", "commit save charge payment"}
	if y.asked {
		points = append(points, "commit running charge payment", "ask charge payment")
	}
	switch {
	case status == "completed":
		return append(points, "commit completed")
	case status == "cancelled" && y.cancelled[0] == chargedBack:
		points = append(points, "commit compensating charge payment intent", "undo charge payment")
	}
	return append(points, "commit compensated")
}

// F22, F23: whatever the provider does with a charge, and wherever the engine dies on the way, once and again: the order
// is charged once if it completes and keeps no money if it does not, its stock is exact, and one message tells of it.
func TestEveryCrashLeavesOrdersPaymentsAndStockExact(t *testing.T) {
	t.Parallel()
	for _, way := range ways() {
		if !way.few && !*whole {
			continue
		}
		t.Run(way.sentence, func(t *testing.T) {
			t.Parallel()
			w := way.till(t)
			if way.method == "pm_webhook_only" {
				w.front.fault = noLookUps()
			}
			w.everyCrash(t, func(t testing.TB) *sagatest.World {
				e := w.placed(t, way.method)
				return w.life(e, way.points(way.status), func(t testing.TB) {
					w.check(t, e.OrderID, way.status, way.outside)
				})
			})
		})
		t.Run(way.sentence+", and cancelled meanwhile", func(t *testing.T) {
			t.Parallel()
			w := way.till(t)
			w.front.creating = func(id uuid.UUID) {
				if err := w.accept(context.WithoutCancel(t.Context()), id); err != nil {
					t.Errorf("cancel order %s: %v", id, err)
				}
			}
			w.everyCrash(t, func(t testing.TB) *sagatest.World {
				e := w.placed(t, way.method)
				return w.life(e, way.points("cancelled"), func(t testing.TB) { w.check(t, e.OrderID, "cancelled", way.cancelled...) })
			})
		})
	}
}

func (y way) till(t testing.TB) *till {
	t.Helper()
	w := newTill(t, map[string]int64{"pen": 100_000}, func(w *till, cfg *sandbox.Config) {
		if y.webhooks {
			w.takeWebhooks(t, cfg)
		}
	})
	w.front.hold = y.hold
	return w
}

// noLookUps leaves the webhook as the only way to learn of a charge: an intent whose confirm was sent is not shown any more.
// To take a charge back, look-ups are needed.
func noLookUps() func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
	var confirmed sync.Map // by path
	return func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if intent, ok := strings.CutSuffix(r.URL.Path, "/confirm"); ok {
			confirmed.Store(intent, true)
		}
		if _, ok := confirmed.Load(r.URL.Path); ok {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(rw, r)
	}
}

// everyCrash is the one place that calls sagatest.
func (w *till) everyCrash(t *testing.T, build func(t testing.TB) *sagatest.World) {
	t.Helper()
	points := sagatest.EveryCrash(t, build)
	w.judge(t)
	fmt.Printf("%s: crashed at %d points, in %d runs\n", t.Name(), len(points), len(w.ends)) // for make test-payments
}

// life is the life of one order.
func (w *till) life(e event.OrderPlaced, points []string, check func(t testing.TB)) *sagatest.World {
	return &sagatest.World{
		Pool: w.pool, Definitions: []*saga.Definition{definition(w.payments)}, Options: crashing(), Start: []saga.NewInstance{start(e)},
		Points: points, Check: check,
	}
}

// crashing is swift with short leases, because the claim of an engine that died may commit after its leases were ended.
func crashing() saga.EngineOptions {
	opts := swift()
	opts.Lease = time.Second
	return opts
}

// F22, F23: a refund is paid once, whatever becomes of its answer and wherever the engine dies.
func TestEveryCrashPaysARefundOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence, method string
		asked            bool
	}{
		{"refunded", "pm_ok", false},
		{"refunded, the answer is lost", "pm_refund_lost_answer", true},
		{"not refunded, no answer in time", "pm_refund_timeout_once", true},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			w := newTill(t, map[string]int64{"pen": 100_000})
			points := []string{"commit claim", "commit running refund payment intent", "call refund payment", "commit completed"}
			if tc.asked {
				points = append(points, "commit running refund payment", "ask refund payment")
			}
			w.everyCrash(t, func(t testing.TB) *sagatest.World {
				e := w.placed(t, tc.method)
				w.complete(t, e)
				return &sagatest.World{
					Pool: w.pool, Definitions: []*saga.Definition{refundDefinition(w.payments)}, Options: crashing(),
					Start: []saga.NewInstance{w.refundOf(t, e)}, Points: points,
					Check: func(t testing.TB) { w.checkRefund(t, e) },
				}
			})
		})
	}
}

// complete carries an order to its end.
func (w *till) complete(t testing.TB, e event.OrderPlaced) {
	t.Helper()
	stop := w.run(t, 1, swift())
	w.start(t, e)
	w.awaitStatus(t, e.OrderID, "completed")
	stop()
}

// checkRefund checks an order at rest, after the warehouse has said that it was never handed over.
func (w *till) checkRefund(t testing.TB, e event.OrderPlaced) {
	t.Helper()
	w.check(t, e.OrderID, "refunded", chargedBack)
	w.tx(t, func(tx pgx.Tx) error {
		return unship(t.Context(), tx, []inbox.Event[event.ShipmentCancelled]{{
			Data: event.ShipmentCancelled{ShipmentID: uuid.Must(uuid.NewV7()), OrderID: e.OrderID, UserID: e.UserID, CancelledAt: time.Now()},
		}})
	})
}

// refundOf accepts a refund as the api does, and returns its saga.
func (w *till) refundOf(t testing.TB, e event.OrderPlaced) saga.NewInstance {
	t.Helper()
	var r order.Refund
	w.tx(t, func(tx pgx.Tx) (err error) {
		r, err = order.RequestRefund(t.Context(), tx, e.OrderID, "it arrived broken", "support")
		return err
	})
	return saga.NewInstance{
		ID: r.ID, Lane: e.UserID, Definition: refundSagaName, Version: refundSagaVersion,
		Data: refunding{
			OrderID: e.OrderID, Total: e.Total, Currency: e.Currency, Reason: "it arrived broken",
			IntentID: w.text(t, `SELECT intent_id FROM orders.payments WHERE order_id = $1`, e.OrderID),
		},
	}
}
