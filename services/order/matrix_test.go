package order

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/services/sandbox"
	"github.com/orderflow-dev/orderflow/test/verify"
)

// till is a shop whose payments go through a front to a real sandbox.
type till struct {
	*world   // without a broker
	payments *payments
	front    *front
	ends     map[uuid.UUID]ended
}

func newTill(t testing.TB, stock map[string]int64, cfg ...func(*till, *sandbox.Config)) *till {
	t.Helper()
	w := &till{world: &world{shop: newShop(t, stock)}, ends: map[uuid.UUID]ended{}}
	box := sandbox.Config{
		Slow: 20 * time.Millisecond, Hang: 20 * time.Millisecond, // a hang ends with a 504, which is no more of an answer
	}
	for _, change := range cfg {
		change(w, &box)
	}
	w.sandbox = runSandbox(t, box)
	w.front = newFront(t, w.sandbox)
	w.payments = w.shop.payments(t, w.front.url)
	return w
}

// payments returns the step "charge payment" at a provider.
func (s *shop) payments(t testing.TB, base string) *payments {
	t.Helper()
	return &payments{provider(t, base), s.pool}
}

// swift makes everything that waits wait little.
func swift() saga.EngineOptions {
	return saga.EngineOptions{
		MinPoll: time.Millisecond, MaxPoll: 5 * time.Millisecond, RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond,
		InDoubtEvery: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
}

// run runs engines over the orders and refunds until the test ends or stop is called.
func (w *till) run(t testing.TB, engines int, opts saga.EngineOptions) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, engines)
	for range engines {
		e, err := saga.NewEngine(w.pool, []*saga.Definition{definition(w.payments), refundDefinition(w.payments)}, opts)
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- e.Run(ctx) }()
	}
	stop = sync.OnceFunc(func() {
		cancel()
		for range engines {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(stop)
	return stop
}

// placeMany places n orders of as many users and starts their sagas, all in one transaction.
func (w *till) placeMany(t testing.TB, n int, what func(i int) (method string, items []event.Item)) []event.OrderPlaced {
	t.Helper()
	placed := make([]event.OrderPlaced, n)
	w.tx(t, func(tx pgx.Tx) error {
		sagas, messages := make([]saga.NewInstance, n), make([]outbox.Message, n)
		for i := range placed {
			method, items := what(i)
			var err error
			if placed[i], err = insert(t.Context(), tx, "user-"+uuid.NewString(), method, items...); err != nil {
				return err
			}
			if messages[i], err = outbox.JSON(placed[i]); err != nil {
				return err
			}
			sagas[i] = start(placed[i])
		}
		if err := outbox.Write(t.Context(), tx, messages...); err != nil {
			return err
		}
		return saga.Start(t.Context(), tx, sagas...)
	})
	return placed
}

// awaitAll waits until no order is pending, and returns how many there are of each status.
func (w *till) awaitAll(t testing.TB) map[string]int {
	t.Helper()
	eventually(t, "all orders end", func() error {
		return want("pending orders", w.text(t, `SELECT count(*)::text FROM orders.orders WHERE status = 'pending'`), "0")
	})
	rows, _ := w.DB.Pool.Query(t.Context(), `SELECT status, count(*) FROM orders.orders GROUP BY status`)
	ends := map[string]int{}
	var status string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&status, &n}, func() error { ends[status] = n; return nil }); err != nil {
		t.Fatal(err)
	}
	return ends
}

// placed inserts an order and the message that tells of it, as the api does.
func (w *till) placed(t testing.TB, method string) (e event.OrderPlaced) {
	t.Helper()
	w.tx(t, func(tx pgx.Tx) (err error) {
		if e, err = insert(t.Context(), tx, "user-"+uuid.NewString(), method, item("pen", 2)); err != nil {
			return err
		}
		m, err := outbox.JSON(e)
		if err != nil {
			return err
		}
		return outbox.Write(t.Context(), tx, m)
	})
	return e
}

// start starts the saga of an order.
func (w *till) start(t testing.TB, e event.OrderPlaced) {
	t.Helper()
	w.tx(t, func(tx pgx.Tx) error { return saga.Start(t.Context(), tx, start(e)) })
}

// accept accepts the cancel of an order, and tells its saga as the consumer does.
func (w *till) accept(ctx context.Context, id uuid.UUID) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := order.RequestCancel(ctx, tx, id); err != nil {
			return err
		}
		return saga.RequestCancel(ctx, tx, id)
	})
}

// rows is all that is written about orders and their payments, by table.
func (w *till) rows(t testing.TB) map[string]string {
	t.Helper()
	rows := map[string]string{}
	for _, table := range []string{
		"orders", "payments", "refunds", "reservations", "stock_moves", "outbox", "saga_instances", "saga_journal", "saga_lanes", "saga_audit",
	} {
		rows[table] = w.text(t, `SELECT coalesce(string_agg(r::text, E'\n' ORDER BY r::text), '') FROM orders.`+table+` AS r`)
	}
	return rows
}

// ended notes an order at rest, for judge to look at.
type ended struct {
	run     string
	status  string
	outside []string // what the provider may have done
}

// check checks how an order has ended, and leaves the rest to judge.
func (w *till) check(t testing.TB, id uuid.UUID, status string, outside ...string) {
	t.Helper()
	if got := w.status(t, id); got != status {
		t.Errorf("order is %s, want %s; its saga: %s", got, status, w.text(t, `
			SELECT format('%s at %s, %s; %s', s.state, s.step_name, s.error,
				(SELECT string_agg(format('%s%s %s', CASE WHEN undo THEN 'undo ' END, name, state), ', ' ORDER BY intent_at) FROM orders.saga_journal WHERE saga_id = s.id))
			FROM orders.saga_instances s WHERE s.id = $1`, id))
	}
	w.ends[id] = ended{t.Name(), status, outside}
}

// judge checks all orders at rest, once for all runs: money by the provider's own journal, the rest by the invariants.
func (w *till) judge(t testing.TB) {
	t.Helper()
	did := w.allOutside(t)
	seen := map[string]int{}
	may := map[string]bool{}
	for id, end := range w.ends {
		got := did[id.String()]
		seen[got]++
		for _, outside := range end.outside {
			may[outside] = true
		}
		if !slices.Contains(end.outside, got) {
			t.Errorf("%s: the provider did %q for order %s, which is %s; want one of %q", end.run, got, id, end.status, end.outside)
		}
		// I13 and I14, whatever the case lists: never charged twice, paid for or not, and never both.
		charges, refunds := strings.Count(got, "charge"), strings.Count(got, "refund")
		paid := map[bool]int{true: 1}[end.status == "completed"]
		if charges > 1 || charges-refunds != paid {
			t.Errorf("%s: order %s is %s, charged %d times and refunded %d times", end.run, id, end.status, charges, refunds)
		}
	}
	for outside := range may { // the run was not vacuous
		if seen[outside] == 0 {
			t.Errorf("in no run the provider did %q, only %v", outside, seen)
		}
	}
	for reference := range did {
		if _, ours := w.ends[uuid.MustParse(reference)]; !ours {
			t.Errorf("the provider did %q for %s, which nobody has looked at", did[reference], reference)
		}
	}
	w.invariants(t)
}

// invariants checks what must hold of all orders at rest.
func (w *till) invariants(t testing.TB) {
	t.Helper()
	if got := w.text(t, `SELECT count(*)::text FROM orders.orders WHERE status = 'pending'`); got != "0" { // I4
		t.Errorf("%s orders are pending at rest", got)
	}
	violations, err := verify.Tables(t.Context(), w.DB.Pool, "I5", "I6", "I13", "I15", "I16", "I22")
	if err != nil {
		t.Error(err)
	}
	for _, v := range violations {
		t.Error(v)
	}
}

// takeWebhooks takes the sandbox's webhooks as the api and the consumer do, without the outbox and Kafka between them. Here a
// repeat is not dropped on the way: it is for the saga to make nothing of it.
func (w *till) takeWebhooks(t testing.TB, cfg *sandbox.Config) {
	t.Helper()
	cfg.WebhookSecret, cfg.WebhookRetry = "whsec_test", 5*time.Millisecond
	reader, err := providers.Webhooks(providers.Sandbox, cfg.WebhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err == nil {
			err = w.takeReport(ctx, reader, r.Header, raw)
		}
		if err != nil {
			t.Errorf("webhook %s: %v", raw, err)
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	cfg.WebhookURL = server.URL
}

func (w *till) takeReport(ctx context.Context, reader payment.Webhooks, header http.Header, raw []byte) error {
	said, err := reader.Parse(header, raw)
	if err != nil {
		return err
	}
	e := event.PaymentReported{
		Provider: reader.Provider(), IntentID: said.Intent.ID, Status: string(said.Intent.Status), Amount: said.Intent.Amount,
		Currency: said.Intent.Currency, RefundID: said.Intent.Refund, ReportedAt: said.At,
	}
	if e.OrderID, err = uuid.Parse(said.Intent.Reference); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT user_id FROM orders WHERE id = $1`, e.OrderID).Scan(&e.UserID); err != nil {
			return err
		}
		return reported(ctx, tx, inbox.Event[event.PaymentReported]{Data: e})
	})
}

// front stands between the gateway and the sandbox. What it does goes by what is asked, never by time, so a run takes the
// same way each time.
type front struct {
	url     string
	sandbox string
	proxy   http.Handler

	mu sync.Mutex
	// creating is called once for each order, before its intent is created. Optional.
	creating func(orderID uuid.UUID)
	created  map[uuid.UUID]bool
	// hold keeps confirms from the sandbox: the caller's connection breaks, and the confirm arrives when its intent is looked
	// up for the holdth time, or after it was cancelled. 0: none is held.
	hold int
	// fault stands before all else. Optional.
	fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

	held  map[string]func() // by path of the intent
	asked map[string]int
}

func newFront(t testing.TB, sandbox string) *front {
	t.Helper()
	target, err := url.Parse(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	f := &front{
		sandbox: sandbox, created: map[uuid.UUID]bool{}, held: map[string]func(){}, asked: map[string]int{},
		proxy: &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
			Transport: transport,
			ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
			// A connection that the sandbox drops is dropped here.
			ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		},
	}
	server := httptest.NewServer(f)
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	f.url = server.URL
	return f
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.fault != nil {
		f.fault(w, r, http.HandlerFunc(f.serve))
		return
	}
	f.serve(w, r)
}

func (f *front) serve(w http.ResponseWriter, r *http.Request) {
	intent, confirm := strings.CutSuffix(r.URL.Path, "/confirm")
	intent, cancel := strings.CutSuffix(intent, "/cancel")
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/v1/payment_intents":
		f.create(r)
	case confirm && f.keep(intent, r):
		panic(http.ErrAbortHandler)
	case r.Method == http.MethodGet:
		f.look(intent)
	}
	f.proxy.ServeHTTP(w, r)
	if cancel {
		f.letIn(intent)
	}
}

func (f *front) create(r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(raw))
	var body struct {
		Reference uuid.UUID `json:"reference"`
	}
	if err != nil || json.Unmarshal(raw, &body) != nil {
		return // the sandbox says what is wrong with it
	}
	f.mu.Lock()
	tell := f.creating
	if f.created[body.Reference] {
		tell = nil
	}
	f.created[body.Reference] = true
	f.mu.Unlock()
	if tell != nil {
		tell(body.Reference)
	}
}

// keep holds a confirm, if confirms are held and this one's time has not come.
func (f *front) keep(intent string, r *http.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hold == 0 || f.asked[intent] >= f.hold {
		return false
	}
	key := r.Header.Get("Idempotency-Key")
	f.held[intent] = func() {
		req, err := http.NewRequest(http.MethodPost, f.sandbox+intent+"/confirm", strings.NewReader("{}"))
		if err != nil {
			panic(err) // the test's own URL
		}
		req.Header.Set("Idempotency-Key", key)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	return true
}

func (f *front) look(intent string) {
	f.mu.Lock()
	f.asked[intent]++
	due := f.asked[intent] == f.hold
	f.mu.Unlock()
	if due {
		f.letIn(intent)
	}
}

// letIn sends a confirm on that was held.
func (f *front) letIn(intent string) {
	f.mu.Lock()
	send := f.held[intent]
	delete(f.held, intent)
	f.mu.Unlock()
	if send != nil {
		send()
	}
}
