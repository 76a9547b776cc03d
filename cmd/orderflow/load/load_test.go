package load

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var catalog = []apiclient.Product{
	{SKU: "sku-mug", Currency: "EUR", UnitPrice: 100, Available: 10},
	{SKU: "sku-pen", Currency: "EUR", UnitPrice: 100, Available: 10},
	{SKU: "sku-tee", Currency: "USD", UnitPrice: 100, Available: 10},
	{SKU: "sku-sold-out", Currency: "EUR", UnitPrice: 100},
}

// flakyAPI keeps one order per idempotency key, and lets trouble decide what the client gets to see of it.
type flakyAPI struct {
	mu      sync.Mutex
	orders  map[string]string // key → id
	bodies  map[string]string // key → first body
	changed []string          // keys that came again with another body
	trouble func(w http.ResponseWriter, attempt int) (answered bool)
	seen    map[string]int
}

func (f *flakyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := new(strings.Builder)
	_, _ = bufio.NewReader(r.Body).WriteTo(body)
	key := r.Header.Get("Idempotency-Key")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[key]++
	if first, ok := f.bodies[key]; ok && first != body.String() {
		f.changed = append(f.changed, key)
	}
	f.bodies[key] = body.String()
	id, replayed := f.orders[key]
	if !replayed {
		id = fmt.Sprintf("order-%d", len(f.orders)+1)
		f.orders[key] = id
	}
	if f.trouble != nil && f.trouble(w, f.seen[key]) {
		return
	}
	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"id":%q,"status":"pending"}`, id)
}

func newFlakyAPI(t *testing.T, trouble func(w http.ResponseWriter, attempt int) bool) (*flakyAPI, *apiclient.Client) {
	t.Helper()
	api := &flakyAPI{orders: map[string]string{}, bodies: map[string]string{}, seen: map[string]int{}, trouble: trouble}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	client := apiclient.New(server.URL, "key", 16)
	t.Cleanup(client.Close)
	return api, client
}

func newOrders(t *testing.T, mix Mix) func() apiclient.NewOrder {
	t.Helper()
	g, err := NewGenerator(1, 10, catalog, mix)
	if err != nil {
		t.Fatal(err)
	}
	return g.Next
}

func readJournal(t *testing.T, path string) []Entry {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var entries []Entry
	for line := range strings.Lines(string(raw)) {
		var e Entry
		if json.Unmarshal([]byte(line), &e) == nil {
			entries = append(entries, e)
		}
	}
	return entries
}

func TestRunFindsTheOutcomeOfEveryOrderWhateverHappensToItsAnswers(t *testing.T) {
	t.Parallel()
	hangUp := func(w http.ResponseWriter) bool {
		panic(http.ErrAbortHandler) // done, but the answer is lost
	}
	for _, tc := range []struct {
		name    string
		trouble func(w http.ResponseWriter, attempt int) bool
		retried bool
	}{
		{"every answer arrives", nil, false},
		{"the first answer is lost with its connection", func(w http.ResponseWriter, attempt int) bool {
			return attempt == 1 && hangUp(w)
		}, true},
		{"the first two answers are 503", func(w http.ResponseWriter, attempt int) bool {
			if attempt <= 2 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return attempt <= 2
		}, true},
		{"the first request is still at work", func(w http.ResponseWriter, attempt int) bool {
			if attempt == 1 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusConflict)
			}
			return attempt == 1
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			api, client := newFlakyAPI(t, tc.trouble)
			path := filepath.Join(t.TempDir(), "load.jsonl")
			journal, err := OpenJournal(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Run(t.Context(), client, newOrders(t, Mix{}), Options{Rate: 1000, Orders: 40, Journal: journal})
			if err != nil {
				t.Fatal(err)
			}
			if err := journal.Close(); err != nil {
				t.Fatal(err)
			}
			if s.Orders != 40 || s.Accepted != 40 || s.Refused != 0 || s.Unknown != 0 {
				t.Errorf("Run() = %+v, want 40 orders, all accepted", s)
			}
			if (s.Retried > 0) != tc.retried {
				t.Errorf("Run() retried %d attempts, want retries: %v", s.Retried, tc.retried)
			}
			if len(api.orders) != 40 || len(api.changed) > 0 {
				t.Errorf("the api has %d orders and saw %d keys with a second body, want 40 and 0", len(api.orders), len(api.changed))
			}
			checkJournal(t, readJournal(t, path), api)
		})
	}
}

// checkJournal asserts what a checker relies on: a request is in the journal before its answer, and an accepted order
// names the order that the api made.
func checkJournal(t *testing.T, entries []Entry, api *flakyAPI) {
	t.Helper()
	requested, outcomes := map[string]int{}, 0
	for _, e := range entries {
		switch e.Kind {
		case KindRequest:
			requested[e.Key]++
			if (e.Attempt == 1) != (e.Body != nil) {
				t.Errorf("request %s attempt %d: body %s, want it on the first attempt only", e.Key, e.Attempt, e.Body)
			}
		case KindAnswer:
			if requested[e.Key] < e.Attempt {
				t.Errorf("answer %s attempt %d came before its request", e.Key, e.Attempt)
			}
		case KindOutcome:
			outcomes++
			if e.Outcome != Accepted || e.OrderID != api.orders[e.Key] {
				t.Errorf("outcome %+v, want accepted as %s", e, api.orders[e.Key])
			}
		}
	}
	if outcomes != len(api.orders) {
		t.Errorf("journal has %d outcomes, want %d", outcomes, len(api.orders))
	}
	if first, last := entries[0].Kind, entries[len(entries)-1].Kind; first != KindRun || last != KindEnd {
		t.Errorf("journal goes from %s to %s, want run to end", first, last)
	}
}

func TestRunGivesUpOnADefiniteNoAtOnce(t *testing.T) {
	t.Parallel()
	api, client := newFlakyAPI(t, func(w http.ResponseWriter, _ int) bool {
		w.WriteHeader(http.StatusUnprocessableEntity)
		return true
	})
	s, err := Run(t.Context(), client, newOrders(t, Mix{}), Options{Rate: 1000, Orders: 5})
	if err != nil {
		t.Fatal(err)
	}
	if s.Refused != 5 || s.Retried != 0 || s.Answers["422"] != 5 {
		t.Errorf("Run() = %+v, want 5 refused without a retry", s)
	}
	_ = api
}

func TestRunLeavesAnOrderUnknownRatherThanGuess(t *testing.T) {
	t.Parallel()
	_, client := newFlakyAPI(t, func(w http.ResponseWriter, _ int) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	s, err := Run(t.Context(), client, newOrders(t, Mix{}), Options{Rate: 1000, Orders: 3, RetryFor: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if s.Unknown != 3 || s.Accepted+s.Refused != 0 {
		t.Errorf("Run() = %+v, want 3 unknown", s)
	}
}

func TestRunThatIsInterruptedWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	_, client := newFlakyAPI(t, func(http.ResponseWriter, int) bool {
		cancel()
		return false
	})
	s, err := Run(ctx, client, newOrders(t, Mix{}), Options{Rate: 5, Orders: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if s.Orders == 0 || s.Orders > 3 || s.Accepted != s.Orders {
		t.Errorf("Run() = %+v, want the first orders accepted and no others begun", s)
	}
}

func TestRunArrivesOnTimeHoweverSlowTheAnswers(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"id":"x"}`)
	}))
	defer server.Close()
	client := apiclient.New(server.URL, "key", 64)
	defer client.Close()
	s, err := Run(t.Context(), client, newOrders(t, Mix{}), Options{Rate: 500, Orders: 50, Progress: func(p Progress) {
		if p.InFlight == 50 { // all fifty arrived, none was answered
			once.Do(func() { close(release) })
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Accepted != 50 || s.Latency.P50 <= 0 {
		t.Errorf("Run() = %+v, want 50 accepted with their latency", s)
	}
}

func TestJournalThatCannotBeWrittenVoidsTheRun(t *testing.T) {
	t.Parallel()
	_, client := newFlakyAPI(t, nil)
	journal, err := OpenJournal(filepath.Join(t.TempDir(), "load.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	orders := newOrders(t, Mix{})
	_, err = Run(t.Context(), client, func() apiclient.NewOrder {
		if calls++; calls == 10 {
			_ = journal.file.Close()
		}
		return orders()
	}, Options{Rate: 1000, Orders: 1000, Journal: journal})
	if err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("Run() = %v, want the journal's error", err)
	}
	if calls == 1000 {
		t.Error("Run went on to the end without a journal")
	}
}

func TestJournalIsolatesALineThatACrashCutOff(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "load.jsonl")
	if err := os.WriteFile(path, []byte("{\"kind\":\"run\"}\n{\"kind\":\"requ"), 0o600); err != nil {
		t.Fatal(err)
	}
	journal, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := journal.Append(Entry{Kind: KindEnd}); err != nil {
		t.Fatal(err)
	}
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	entries := readJournal(t, path)
	if len(entries) != 2 || entries[0].Kind != KindRun || entries[1].Kind != KindEnd {
		t.Errorf("journal = %+v, want run and end", entries)
	}
}

func TestGeneratorKeepsTheSharesAndWhatIsInStock(t *testing.T) {
	t.Parallel()
	next := newOrders(t, Mix{Declines: 0.2, LostAnswers: 0.1})
	methods := map[string]int{}
	for range 10_000 {
		o := next()
		methods[o.PaymentMethod]++
		skus := map[string]bool{}
		for _, item := range o.Items {
			if item.SKU == "sku-sold-out" || item.Quantity < 1 || skus[item.SKU] || (item.SKU == "sku-tee") != (o.Currency == "USD") {
				t.Fatalf("Next() = %+v, want products in stock, each once, of one currency", o)
			}
			skus[item.SKU] = true
		}
		if len(o.Items) == 0 {
			t.Fatalf("Next() = %+v, want an item", o)
		}
	}
	for method, want := range map[string]float64{"pm_ok": 0.7, "pm_declined": 0.2, "pm_lost_answer": 0.1} {
		if got := float64(methods[method]) / 10_000; got < want-0.03 || got > want+0.03 {
			t.Errorf("share of %s = %.3f, want %.1f", method, got, want)
		}
	}
}

func TestGeneratorRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		users    int
		products []apiclient.Product
		mix      Mix
	}{
		{"shares above one", 1, catalog, Mix{Declines: 0.6, Slow: 0.6}},
		{"a negative share", 1, catalog, Mix{Errors: -0.1}},
		{"no users", 0, catalog, Mix{}},
		{"nothing in stock", 1, catalog[3:], Mix{}},
	} {
		if _, err := NewGenerator(1, tc.users, tc.products, tc.mix); err == nil {
			t.Errorf("NewGenerator with %s: no error", tc.name)
		}
	}
}
