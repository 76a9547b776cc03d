package order

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/saga"
)

// stripe speaks as much of Stripe's protocol as an order needs.
type stripe struct {
	mu      sync.Mutex
	intents map[string]*stripeIntent // by idempotency key, and by id
}

type stripeIntent struct {
	id, amount, currency, method, order, status, refund string
}

func (in *stripeIntent) write(w io.Writer) {
	failed := "null"
	if in.status == "requires_payment_method" {
		failed = `{"type":"card_error","code":"card_declined"}`
	}
	fmt.Fprintf(w, `{"id":%q,"object":"payment_intent","status":%q,"amount":%s,"currency":%q,"metadata":{"order_id":%q},"last_payment_error":%s,
		"latest_charge":{"id":"ch_1","object":"charge","refunded":%t,"refunds":{"object":"list","data":[{"id":%q,"object":"refund"}]}}}`,
		in.id, in.status, in.amount, in.currency, in.order, failed, in.refund != "", in.refund)
}

func (s *stripe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(status int, kind, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"type":%q,"code":%q,"message":"no"}}`, kind, code)
	}
	key := r.Header.Get("Idempotency-Key")
	if r.URL.Path == "/v1/payment_intents" {
		if s.intents[key] == nil {
			in := &stripeIntent{fmt.Sprintf("pi_%d", len(s.intents)), r.FormValue("amount"), r.FormValue("currency"), r.FormValue("payment_method"),
				r.FormValue("metadata[order_id]"), "requires_confirmation", ""}
			s.intents[key], s.intents[in.id] = in, in
		}
		s.intents[key].write(w)
		return
	}
	id, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/payment_intents/"), "/")
	if r.URL.Path == "/v1/refunds" {
		id, action = r.FormValue("payment_intent"), "refund"
	}
	in := s.intents[id]
	if in == nil {
		refuse(http.StatusNotFound, "invalid_request_error", "resource_missing")
		return
	}
	switch action {
	case "confirm":
		switch in.method {
		case "pm_card_chargeDeclined":
			in.status = "requires_payment_method"
			refuse(http.StatusPaymentRequired, "card_error", "card_declined")
			return
		case "pm_other_amount":
			in.amount = "1"
		case "pm_hangs":
			panic(http.ErrAbortHandler)
		}
		in.status = "succeeded"
		if in.method == "pm_lost_answer" {
			panic(http.ErrAbortHandler)
		}
	case "cancel":
		if in.status == "succeeded" || in.status == "canceled" {
			refuse(http.StatusBadRequest, "invalid_request_error", "payment_intent_unexpected_state")
			return
		}
		in.status = "canceled"
	case "refund":
		in.refund = "re_" + id
		fmt.Fprintf(w, `{"id":%q,"object":"refund","status":"succeeded"}`, in.refund)
		return
	}
	in.write(w)
}

func TestOrdersAreChargedThroughStripe(t *testing.T) {
	t.Parallel()
	w := &world{shop: newShop(t, map[string]int64{"pen": 100}), broker: kafkatest.New(t, event.Topics()...)}
	api := httptest.NewServer(&stripe{intents: map[string]*stripeIntent{}})
	t.Cleanup(api.Close)
	background(t, func(ctx context.Context) error {
		return Run(ctx, slog.New(slog.DiscardHandler), Config{
			DatabaseURL: w.RoleURL("orders"), Brokers: w.broker.Addrs,
			Payment: providers.Config{Name: providers.Stripe, URL: api.URL, StripeKey: "sk_test_123"},
		})
	})
	order := func(user, method string) event.OrderPlaced {
		e := w.place(t, user, method, item("pen", 2))
		w.broker.Produce(t, record(t, e))
		return e
	}
	tests := []struct{ name, method, status, payment string }{
		{"a card that pays", "pm_card_visa", "completed", "charged"},
		{"one that is declined", "pm_card_chargeDeclined", "payment_failed", "declined"},
		{"an answer that is lost", "pm_lost_answer", "completed", "charged"},
		{"a confirm that never arrives", "pm_hangs", "payment_failed", "cancelled"},
	}
	var placed []event.OrderPlaced
	for _, tt := range tests {
		placed = append(placed, order("user-"+tt.method, tt.method))
	}
	refunded, otherAmount := order("refunded", "pm_card_visa"), order("amount", "pm_other_amount")

	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.awaitStatus(t, placed[i].OrderID, tt.status)
			if got := w.text(t, `SELECT status FROM orders.payments WHERE order_id = $1`, placed[i].OrderID); got != tt.payment {
				t.Errorf("payment = %s, want %s", got, tt.payment)
			}
		})
	}
	t.Run("a refund", func(t *testing.T) {
		w.awaitStatus(t, refunded.OrderID, "completed")
		w.requestRefund(t, refunded)
		w.awaitStatus(t, refunded.OrderID, "refunded")
	})
	t.Run("another amount than the order's", func(t *testing.T) {
		eventually(t, "a stuck saga", func() error {
			h, err := saga.Load(t.Context(), w.pool, otherAmount.OrderID)
			if err != nil {
				return err
			}
			return want("state", h.Instance.State, saga.StuckState)
		})
	})
}
