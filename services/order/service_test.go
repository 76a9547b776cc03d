package order

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/services/sandbox"
)

// world is a shop with the order service running on it, a broker, and a payment provider.
type world struct {
	*shop
	broker  *kafkatest.Broker
	sandbox string
}

// newWorld runs the service. between, if there is one, stands between it and the payment provider.
func newWorld(t testing.TB, stock map[string]int64, between func(w *world, next http.Handler) http.Handler) *world {
	t.Helper()
	w := &world{shop: newShop(t, stock), broker: kafkatest.New(t, event.Topics()...)}
	w.sandbox = startSandbox(t)
	provider := w.sandbox
	if between != nil {
		target, err := url.Parse(w.sandbox)
		if err != nil {
			t.Fatal(err)
		}
		front := httptest.NewServer(between(w, httputil.NewSingleHostReverseProxy(target)))
		t.Cleanup(front.Close)
		provider = front.URL
	}
	background(t, func(ctx context.Context) error {
		return Run(ctx, slog.New(slog.DiscardHandler), Config{
			DatabaseURL: w.RoleURL("orders"), Brokers: w.broker.Addrs, Payment: providers.Config{URL: provider},
		})
	})
	return w
}

func startSandbox(t testing.TB) (base string) {
	t.Helper()
	return runSandbox(t, sandbox.Config{Slow: 300 * time.Millisecond, Late: 4 * time.Second})
}

func runSandbox(t testing.TB, cfg sandbox.Config) (base string) {
	t.Helper()
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mail, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listener, cfg.SMTPListener, cfg.DataDir = web, mail, t.TempDir()
	background(t, func(ctx context.Context) error { return sandbox.Run(ctx, slog.New(slog.DiscardHandler), cfg) })
	return "http://" + web.Addr().String()
}

// background runs f until the test ends, and fails the test if it ends badly.
func background(t testing.TB, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// record is the record of an event, under an id of its own.
func record(t testing.TB, e outbox.Event) *kgo.Record {
	t.Helper()
	payload, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return &kgo.Record{
		Topic: e.Topic(), Key: []byte(e.Key()), Value: payload,
		Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")},
			{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())},
			{Key: "ce_type", Value: []byte(e.Type())},
			{Key: "ce_source", Value: []byte("test")},
			{Key: "content-type", Value: []byte("application/json")},
		},
	}
}

func (w *world) awaitStatus(t testing.TB, id uuid.UUID, status string) {
	t.Helper()
	eventually(t, "order "+id.String(), func() error { return want("status", w.status(t, id), status) })
}

// outside returns what the provider has done for an order.
func (w *world) outside(t testing.TB, id uuid.UUID) string {
	t.Helper()
	return w.allOutside(t)[id.String()]
}

// allOutside returns what the provider has done for each order.
func (w *world) allOutside(t testing.TB) map[string]string {
	t.Helper()
	resp, err := http.Get(w.sandbox + "/v1/journal")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	did := map[string][]string{}
	for dec := json.NewDecoder(resp.Body); dec.More(); {
		var e struct {
			Kind      string `json:"kind"`
			Reference string `json:"reference"`
			Amount    int64  `json:"amount"`
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		did[e.Reference] = append(did[e.Reference], fmt.Sprintf("%s %d", e.Kind, e.Amount))
	}
	all := make(map[string]string, len(did))
	for reference, what := range did {
		all[reference] = strings.Join(what, ", ")
	}
	return all
}

// told returns the type and the payload of the one message that tells how an order ended.
func (w *world) told(t testing.TB, id uuid.UUID) (string, json.RawMessage) {
	t.Helper()
	rows, _ := w.DB.Pool.Query(t.Context(), `
		SELECT topic || ' ' || type || ' ' || key AS what, payload
		FROM orders.outbox
		WHERE convert_from(payload, 'UTF8')::jsonb ->> 'order_id' = $1`, id.String())
	type message struct {
		What    string
		Payload []byte
	}
	messages, err := pgx.CollectRows(rows, pgx.RowToStructByPos[message])
	if err != nil || len(messages) != 1 {
		t.Fatalf("messages about order %s = %d, %v; want one", id, len(messages), err)
	}
	return messages[0].What, messages[0].Payload
}

func TestOrdersEndAsTheirPaymentAndStockAllow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 1000, "gone": 0}, nil)
	tests := []struct {
		name, method, sku string
		status, reason    string
		outside, payment  string
	}{
		{"a payment that succeeds completes the order", "pm_ok", "pen", "completed", "", "charge 2000", "charged"},
		{"a declined one fails it", "pm_declined", "pen", "payment_failed", reasonDeclined, "", "declined"},
		{"an unknown method is declined", "pm_other", "pen", "payment_failed", reasonDeclined, "", "declined"},
		{"a lost answer is found", "pm_lost_answer", "pen", "completed", "", "charge 2000", "charged"},
		{"one error of the provider costs nothing", "pm_error_once", "pen", "completed", "", "charge 2000", "charged"},
		{"a charge whose answer never comes is found", "pm_timeout_charged", "pen", "completed", "", "charge 2000", "charged"},
		{"so is one that was answered with an error", "pm_error_charged", "pen", "completed", "", "charge 2000", "charged"},
		{"a slow provider is waited for", "pm_slow", "pen", "completed", "", "charge 2000", "charged"},
		{"one that never answers is called off", "pm_timeout", "pen", "payment_failed", reasonNoAnswer, "cancel 2000", "cancelled"},
		{"a charge that comes late is found", "pm_late", "pen", "completed", "", "charge 2000", "charged"},
		{"what is not there is not charged", "pm_ok", "gone", "rejected", "out of stock: gone", "", "none"},
	}
	var placed []event.OrderPlaced
	for _, tt := range tests {
		e := w.place(t, "user-"+tt.method+tt.sku, tt.method, item(tt.sku, 2))
		w.broker.Produce(t, record(t, e))
		placed = append(placed, e)
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := placed[i]
			w.awaitStatus(t, e.OrderID, tt.status)
			if got := w.outside(t, e.OrderID); got != tt.outside {
				t.Errorf("the provider did %q, want %q", got, tt.outside)
			}
			if got := w.text(t, `SELECT coalesce((SELECT status FROM orders.payments WHERE order_id = $1), 'none')`, e.OrderID); got != tt.payment {
				t.Errorf("payment = %s, want %s", got, tt.payment)
			}
			held := map[string]string{"completed": "held", "payment_failed": "released", "rejected": "released"}[tt.status]
			if got := w.text(t, `SELECT state FROM orders.reservations WHERE order_id = $1`, e.OrderID); got != held {
				t.Errorf("reservation = %s, want %s", got, held)
			}
			what, payload := w.told(t, e.OrderID)
			if tt.status == "completed" {
				if want := "orders.completed order.completed.v1 " + e.UserID; what != want {
					t.Errorf("message = %q, want %q", what, want)
				}
				return
			}
			var failed event.OrderFailed
			if err := json.Unmarshal(payload, &failed); err != nil {
				t.Fatal(err)
			}
			failed.FailedAt = time.Time{}
			want := event.OrderFailed{
				OrderID: e.OrderID, UserID: e.UserID, UserSeq: 1, Currency: "EUR", Total: 2000, Email: e.Email,
				Status: tt.status, Reason: tt.reason,
			}
			if diff := cmp.Diff(want, failed); diff != "" || what != "orders.failed order.failed.v1 "+e.UserID {
				t.Errorf("message %q (-want +got):\n%s", what, diff)
			}
		})
	}
}

// An accepted cancel wins wherever the saga is: the provider's requests are where the test can stop it.
func TestAnAcceptedCancelWinsAtEveryStep(t *testing.T) {
	t.Parallel()
	const create, confirm = "/v1/payment_intents", "/confirm"
	tests := []struct {
		name    string
		at      string // the end of the path of the request that the cancel comes with; "": before the saga starts
		after   bool   // the request is answered first
		outside string
	}{
		{"before the saga starts", "", false, ""},
		{"before the payment is created", create, false, "charge 2000, refund 2000"},
		{"before it is confirmed", confirm, false, "charge 2000, refund 2000"},
		{"after it is charged", confirm, true, "charge 2000, refund 2000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var accepted func() // accepts the cancel of the one order
			w := newWorld(t, map[string]int64{"pen": 10}, func(_ *world, next http.Handler) http.Handler {
				return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					here := tt.at != "" && strings.HasSuffix(r.URL.Path, tt.at)
					if here && !tt.after {
						accepted()
					}
					next.ServeHTTP(rw, r)
					if here && tt.after {
						accepted()
					}
				})
			})
			e := w.place(t, "ann", "pm_ok", item("pen", 2))
			accepted = func() {
				var c order.Cancel
				w.tx(t, func(tx pgx.Tx) (err error) {
					c, err = order.RequestCancel(t.Context(), tx, e.OrderID)
					return err
				})
				w.broker.Produce(t, record(t, event.OrderCancelRequested{OrderID: e.OrderID, UserID: "ann", RequestedAt: c.RequestedAt}))
			}
			placed := record(t, e)
			if tt.at == "" {
				accepted()
			}
			w.broker.Produce(t, placed)
			w.awaitStatus(t, e.OrderID, "cancelled")
			if got := w.outside(t, e.OrderID); got != tt.outside {
				t.Errorf("the provider did %q, want %q", got, tt.outside)
			}
			if got := w.stock(t, "pen"); got != [3]int64{10, 0, 0} {
				t.Errorf("stock = %v, want all of it available", got)
			}
			if what, _ := w.told(t, e.OrderID); what != "orders.failed order.failed.v1 ann" {
				t.Errorf("message = %q, want order.failed", what)
			}
		})
	}
}

// F21: the same record again and again, and the same order under another message's id.
func TestAnOrderPlacedManyTimesIsChargedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 10}, nil)
	e := w.place(t, "ann", "pm_ok", item("pen", 2))
	again := record(t, e)
	var records []*kgo.Record
	for range 10 {
		records = append(records, again, record(t, e))
	}
	last := w.place(t, "ann", "pm_ok", item("pen", 1))
	for i := range records {
		r := *records[i] // a record can be produced once
		records[i] = &r
	}
	w.broker.Produce(t, append(records, record(t, last))...)
	w.awaitStatus(t, last.OrderID, "completed")
	if got := w.outside(t, e.OrderID); got != "charge 2000" {
		t.Errorf("the provider did %q, want one charge", got)
	}
	if got := w.stock(t, "pen"); got != [3]int64{7, 3, 0} {
		t.Errorf("stock = %v, want 3 reserved", got)
	}
	w.told(t, e.OrderID)
}

func TestOrdersOfOneUserRunOneAfterTheOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 100}, nil)
	var placed []event.OrderPlaced
	var records []*kgo.Record
	for i := range 6 {
		e := w.place(t, "ann", []string{"pm_slow", "pm_ok"}[i%2], item("pen", 1))
		placed, records = append(placed, e), append(records, record(t, e))
	}
	w.broker.Produce(t, records...)
	w.awaitStatus(t, placed[len(placed)-1].OrderID, "completed")
	rows, _ := w.DB.Pool.Query(t.Context(), `
		SELECT (convert_from(payload, 'UTF8')::jsonb ->> 'user_seq')::bigint FROM orders.outbox ORDER BY seq`)
	seqs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if diff := cmp.Diff([]int64{1, 2, 3, 4, 5, 6}, seqs); diff != "" || err != nil {
		t.Errorf("orders completed in the wrong order, %v (-want +got):\n%s", err, diff)
	}
}

func TestShipmentsMoveStockOutOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 10, "mug": 10}, nil)
	e := w.place(t, "ann", "pm_ok", item("pen", 2), item("mug", 1))
	other := w.place(t, "bob", "pm_ok", item("mug", 3))
	w.broker.Produce(t, record(t, e), record(t, other))
	w.awaitStatus(t, e.OrderID, "completed")
	w.awaitStatus(t, other.OrderID, "completed")
	shipment := func(e event.OrderPlaced) *kgo.Record {
		return record(t, event.ShipmentCreated{ShipmentID: uuid.Must(uuid.NewV7()), OrderID: e.OrderID, UserID: e.UserID, ShippedAt: time.Now()})
	}
	// Two shipments of one order in one batch: the second changes nothing.
	w.broker.Produce(t, shipment(e), shipment(e), shipment(other))
	w.awaitStatus(t, e.OrderID, "shipped")
	w.awaitStatus(t, other.OrderID, "shipped")
	eventually(t, "stock", func() error {
		return errors.Join(want("pens", w.stock(t, "pen"), [3]int64{8, 0, 2}), want("mugs", w.stock(t, "mug"), [3]int64{6, 0, 4}))
	})
	if got := w.text(t, `SELECT count(*)::text FROM orders.inbox_holds`); got != "0" {
		t.Errorf("held keys = %s, want none", got)
	}
}

func TestMessagesThatContradictTheOrderAreParked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]int64{"pen": 100}, nil)
	order := func(user string) event.OrderPlaced { return w.place(t, user, "pm_ok", item("pen", 1)) }
	with := func(e event.OrderPlaced, change func(*event.OrderPlaced)) event.OrderPlaced {
		e.Items = slices.Clone(e.Items)
		change(&e)
		return e
	}
	rekeyed := record(t, order("mallory"))
	rekeyed.Key = []byte("keyless")
	broken := record(t, order("broken"))
	broken.Value = []byte(`{"order_id": 7}`)
	tests := []struct {
		name, key, fate string
		record          *kgo.Record
	}{
		{"an order nobody placed", "nobody", "held " + classUnknownOrder,
			record(t, event.OrderPlaced{OrderID: uuid.Must(uuid.NewV7()), UserID: "nobody", Total: 1000, Currency: "EUR"})},
		{"another amount", "amount", "dead " + classInvalid, record(t, with(order("amount"), func(e *event.OrderPlaced) { e.Total = 1 }))},
		{"another price", "price", "dead " + classInvalid, record(t, with(order("price"), func(e *event.OrderPlaced) { e.Items[0].UnitPrice = 1 }))},
		{"other goods", "goods", "dead " + classInvalid, record(t, with(order("goods"), func(e *event.OrderPlaced) { e.Items[0].Quantity = 99 }))},
		{"another payment method", "method", "dead " + classInvalid, record(t, with(order("method"), func(e *event.OrderPlaced) { e.PaymentMethod = "pm_slow" }))},
		{"a key that is not the user", "keyless", "dead key_mismatch", rekeyed},
		{"a payload of another shape", "broken", "dead undecodable", broken},
		{"a cancel that was never accepted", "cancel", "dead " + classInvalid,
			record(t, event.OrderCancelRequested{OrderID: order("cancel").OrderID, UserID: "cancel"})},
		{"a cancel of an order nobody placed", "ghost", "held " + classUnknownOrder,
			record(t, event.OrderCancelRequested{OrderID: uuid.Must(uuid.NewV7()), UserID: "ghost"})},
		{"a shipment of an order that is not paid", "early", "dead " + classInvalid,
			record(t, event.ShipmentCreated{ShipmentID: uuid.Must(uuid.NewV7()), OrderID: order("early").OrderID, UserID: "early"})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.broker.Produce(t, tt.record)
			eventually(t, "the message is parked", func() error {
				got := w.text(t, `SELECT coalesce((SELECT state || ' ' || error_class FROM orders.parked_messages WHERE key = $1), 'none')`, tt.key)
				return want("fate", got, tt.fate)
			})
			if strings.HasPrefix(tt.fate, "held") {
				// An order that is not there yet may come: it was tried more than once, and will be again.
				got := w.text(t, `
					SELECT (p.attempts > 1 AND h.state = 'held')::text
					FROM orders.parked_messages AS p
					JOIN orders.inbox_holds AS h ON (h.consumer_group, h.topic, h.key) = (p.consumer_group, p.topic, p.hold_key)
					WHERE p.key = $1`, tt.key)
				if got != "true" {
					t.Errorf("retried and to be retried = %s, want true", got)
				}
			}
			e := w.place(t, "innocent-"+tt.key, "pm_ok", item("pen", 1))
			w.broker.Produce(t, record(t, e))
			w.awaitStatus(t, e.OrderID, "completed")
		})
	}
}
