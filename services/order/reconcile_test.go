package order

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
)

// post asks the provider for something, past the order service.
func (w *world) post(t *testing.T, path string, body map[string]any) (id string) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.sandbox+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", uuid.NewString())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var made struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || resp.StatusCode >= 300 {
		t.Fatalf("POST %s = %d, %v", path, resp.StatusCode, err)
	}
	return made.ID
}

// charge makes a payment that the order service knows nothing of.
func (w *world) charge(t *testing.T, reference string, amount int64) string {
	t.Helper()
	id := w.post(t, "/v1/payment_intents", map[string]any{"amount": amount, "currency": "EUR", "payment_method": "pm_ok", "reference": reference})
	w.post(t, "/v1/payment_intents/"+id+"/confirm", map[string]any{})
	return id
}

// provider returns a client of the payment provider at base.
func provider(t testing.TB, base string) payment.Provider {
	t.Helper()
	p, err := providers.Open(providers.Config{URL: base})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := w.DB.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func (w *world) reconcile(t *testing.T, since, until time.Time) Reconciliation {
	t.Helper()
	r, err := Reconcile(t.Context(), w.pool, provider(t, w.sandbox), since, until)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReconcileFindsWhatDiffers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 1000}, nil)
	since := time.Now().Add(-time.Minute)
	paid := func() event.OrderPlaced {
		e := w.place(t, uuid.NewString(), "pm_ok", item("pen", 2))
		w.broker.Produce(t, record(t, e))
		w.awaitStatus(t, e.OrderID, "completed")
		return e
	}
	refunded := paid()
	w.requestRefund(t, refunded)
	w.awaitStatus(t, refunded.OrderID, "refunded")
	declined := w.place(t, "dan", "pm_declined", item("pen", 2))
	w.broker.Produce(t, record(t, declined))
	w.awaitStatus(t, declined.OrderID, "payment_failed")
	paid()
	if r := w.reconcile(t, since, time.Now().Add(time.Minute)); r.Compared != 3 || len(r.Differences) != 0 {
		t.Errorf("Reconcile of payments that agree = %+v, want 3 compared and no difference", r)
	}

	intentOf := func(e event.OrderPlaced) string {
		return w.text(t, `SELECT intent_id FROM orders.payments WHERE order_id = $1`, e.OrderID)
	}
	want := map[string]int{} // "order: what", counted
	expect := func(reference, what string) { want[reference+": "+what]++ }

	lost := paid()
	w.exec(t, `UPDATE orders.payments SET status = 'cancelled' WHERE order_id = $1`, lost.OrderID)
	expect(lost.OrderID.String(), "charged there")

	behind := paid()
	w.post(t, "/v1/refunds", map[string]any{"payment_intent": intentOf(behind)})
	expect(behind.OrderID.String(), "charged here")

	early := paid()
	w.exec(t, `UPDATE orders.payments SET status = 'refunded' WHERE order_id = $1`, early.OrderID)
	expect(early.OrderID.String(), "charged there")

	twice := paid()
	w.charge(t, twice.OrderID.String(), 2000)
	expect(twice.OrderID.String(), "charged twice, also as "+intentOf(twice))

	w.charge(t, "someone-elses", 500)
	expect("someone-elses", "money without an order")

	w.charge(t, declined.OrderID.String(), 1)
	expect(declined.OrderID.String(), "another amount")

	gone := paid()
	w.exec(t, `UPDATE orders.payments SET intent_id = 'pi_gone' WHERE order_id = $1`, gone.OrderID)
	expect(gone.OrderID.String(), "charged under another intent than pi_gone")
	expect(gone.OrderID.String(), "charged here")

	for range 120 { // more than a page, of intents that moved nothing
		w.post(t, "/v1/payment_intents", map[string]any{"amount": 1, "currency": "EUR", "payment_method": "pm_ok", "reference": "idle"})
	}
	until := time.Now().Add(time.Minute)
	r := w.reconcile(t, since, until)
	for _, d := range r.Differences {
		want[d.OrderID+": "+d.What]--
	}
	for what, n := range want {
		if n != 0 {
			t.Errorf("%s: found %d times too few", what, n)
		}
	}
	if r.Compared != 3+8+1+120 { // those that agree, eight more intents, pi_gone that is looked up, and the idle ones
		t.Errorf("compared %d payments, want 132", r.Compared)
	}
	if t.Failed() {
		t.Logf("%+v", r.Differences)
	}
	if r := w.reconcile(t, since.Add(-time.Hour), since); r.Compared != 0 || len(r.Differences) != 0 {
		t.Errorf("Reconcile of an hour without payments = %+v, want nothing", r)
	}
}

// What is refunded today was mostly charged before yesterday: neither side lists it among the charges of the span.
func TestReconcileFindsTheRefundsOfOlderCharges(t *testing.T) {
	t.Parallel()
	var mute atomic.Bool // the provider does what it is asked for, and does not tell
	w := newWorld(t, map[string]int64{"pen": 1000}, func(_ *world, next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if !mute.Load() {
				next.ServeHTTP(rw, r)
				return
			}
			if r.Method == http.MethodPost {
				next.ServeHTTP(httptest.NewRecorder(), r)
			}
			panic(http.ErrAbortHandler)
		})
	})
	paid := func() event.OrderPlaced {
		e := w.place(t, uuid.NewString(), "pm_ok", item("pen", 2))
		w.broker.Produce(t, record(t, e))
		w.awaitStatus(t, e.OrderID, "completed")
		return e
	}
	fine, missing, doubtful, untouched := paid(), paid(), paid(), paid()
	since := time.Now()
	w.requestRefund(t, fine)
	w.awaitStatus(t, fine.OrderID, "refunded")
	w.exec(t, `UPDATE orders.payments SET status = 'refunded', updated_at = clock_timestamp() WHERE order_id = $1`, missing.OrderID)
	mute.Store(true)
	r := w.requestRefund(t, doubtful)
	eventually(t, "the provider to have refunded it", func() error {
		return want("what it did", w.outside(t, doubtful.OrderID), "charge 2000, refund 2000")
	})
	w.exec(t, `UPDATE orders.refunds SET requested_at = requested_at - interval '30 days' WHERE id = $1`, r.ID)

	got := w.reconcile(t, since, time.Now().Add(time.Minute))
	found := map[string]string{}
	for _, d := range got.Differences {
		found[d.OrderID] = d.What
	}
	wanted := map[string]string{missing.OrderID.String(): "charged there", doubtful.OrderID.String(): "charged here"}
	if !maps.Equal(found, wanted) || got.Compared != 3 {
		t.Errorf("Reconcile = %+v, want %v, 3 compared, and nothing of %s", got, wanted, untouched.OrderID)
	}

	unheard := w.place(t, "eve", "pm_ok", item("pen", 2)) // the intent's id is not known here
	w.broker.Produce(t, record(t, unheard))
	for _, tt := range []struct {
		name        string
		id          uuid.UUID
		of          event.OrderPlaced
		here, there string // there: how it begins
		refund      string
		differ      int
	}{
		{"both say the same", untouched.OrderID, untouched, "charged, 2000 EUR", "succeeded, 2000 EUR", "", 0},
		{"by the id of a refund", r.ID, doubtful, "charged, 2000 EUR", "refunded as re_", "requested", 1},
		{"refunded on both sides", fine.OrderID, fine, "refunded, 2000 EUR", "refunded as re_", "paid", 0},
		{"an intent that only the provider knows", unheard.OrderID, unheard, "none, 2000 EUR", "requires_confirmation, 2000 EUR", "", 0},
	} {
		eventually(t, tt.name, func() error {
			s, err := BothSides(t.Context(), w.pool, provider(t, w.sandbox), tt.id)
			if err != nil || s.OrderID != tt.of.OrderID || s.Here != tt.here || !strings.HasPrefix(s.There, tt.there) || s.RefundState != tt.refund || len(s.Differences) != tt.differ {
				return fmt.Errorf("BothSides = %+v, %w; want %+v", s, err, tt)
			}
			return nil
		})
	}
	if s, err := BothSides(t.Context(), w.pool, provider(t, w.sandbox), uuid.New()); !errors.Is(err, order.ErrNotFound) {
		t.Errorf("BothSides of an unknown id = %+v, %v, want ErrNotFound", s, err)
	}
}

// The sandbox refunds the whole only.
func TestReconcileTellsOfARefundInPart(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	for _, tt := range []struct {
		status   string
		refunded int64
		what     []string
	}{
		{"charged", 0, nil},
		{"charged", 500, []string{"refunded in part there: charged, 2000 EUR; succeeded, 500 paid back, 2000 EUR"}},
		{"refunded", 500, []string{"refunded in part there: refunded, 2000 EUR; succeeded, 500 paid back, 2000 EUR"}},
	} {
		r := newReconciler(nil, nil)
		there := payment.Intent{ID: "pi_1", Status: payment.Succeeded, Amount: 2000, Currency: "EUR", Reference: id.String(), Refunded: tt.refunded}
		r.compare(there, account{OrderID: id, Total: 2000, Currency: "EUR", IntentID: "pi_1", Status: tt.status}, true)
		var got []string
		for _, d := range r.found.Differences {
			got = append(got, d.What+": "+d.Here+"; "+d.There)
		}
		if !slices.Equal(got, tt.what) {
			t.Errorf("%s here, %d of 2000 refunded there: differences %q, want %q", tt.status, tt.refunded, got, tt.what)
		}
	}
}

func TestReconcileSaysWhenTheProviderDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"pen": 1})
	if _, err := Reconcile(t.Context(), s.pool, provider(t, "http://127.0.0.1:1"), time.Now().Add(-time.Hour), time.Now()); err == nil {
		t.Error("Reconcile without a provider = nil, want an error")
	}
}
