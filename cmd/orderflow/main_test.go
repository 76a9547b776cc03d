package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

func TestMain(m *testing.M) {
	if rerun() {
		return
	}
	pgtest.Main(m)
}

// result is what a command line left behind.
type result struct {
	code           int
	stdout, stderr string
}

// orderflow runs one command line, as main does.
func orderflow(ctx context.Context, args ...string) result {
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// fakeAPI answers like the api, for what the command line makes of the answers.
type fakeAPI struct {
	mu     sync.Mutex
	orders map[string]string // id → status
	bodies []string          // of POST /v1/orders
	keys   []string
	fate   string // status of a placed order
	refuse int    // answer POST /v1/orders with this status, once
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	problem := func(status int, detail string) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"status":%d,"title":"no","detail":%q}`, status, detail)
	}
	id, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/orders/"), "/")
	switch {
	case r.Header.Get("Authorization") != "Bearer key":
		problem(http.StatusUnauthorized, "unknown key")
	case r.URL.Path == "/v1/products":
		fmt.Fprint(w, `{"products":[{"sku":"sku-mug","name":"Mug","unit_price":1890,"currency":"EUR","available":5}]}`)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/orders":
		f.place(w, r, problem)
	case r.URL.Path == "/v1/orders":
		f.list(w, r)
	case f.orders[id] == "":
		problem(http.StatusNotFound, "there is no such order")
	case rest == "cancel" && f.orders[id] != "pending":
		problem(http.StatusConflict, "the order is "+f.orders[id])
	case rest == "timeline":
		fmt.Fprintf(w, `{"order_id":%q,"user_id":"ada","status":%q,"entries":[{"at":"2026-01-02T03:04:05Z","source":"order","what":"placed"}]}`, id, f.orders[id])
	default:
		fmt.Fprint(w, f.document(id))
	}
}

func (f *fakeAPI) place(w http.ResponseWriter, r *http.Request, problem func(int, string)) {
	body := new(bytes.Buffer)
	_, _ = body.ReadFrom(r.Body)
	f.bodies = append(f.bodies, body.String())
	f.keys = append(f.keys, r.Header.Get("Idempotency-Key"))
	if f.refuse != 0 {
		problem(f.refuse, "not now")
		f.refuse = 0
		return
	}
	id := orderID(len(f.orders) + 1)
	f.orders[id] = f.fate
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, f.document(id))
}

func (f *fakeAPI) list(w http.ResponseWriter, r *http.Request) {
	var docs []string
	for n := range len(f.orders) {
		docs = append(docs, f.document(orderID(n+1)))
	}
	next := ""
	if r.URL.Query().Get("cursor") == "" && len(docs) > 2 {
		docs, next = docs[:2], "more"
	} else if r.URL.Query().Get("cursor") == "more" {
		docs = docs[2:]
	}
	fmt.Fprintf(w, `{"orders":[%s],"next_cursor":%q}`, strings.Join(docs, ","), next)
}

func (f *fakeAPI) document(id string) string {
	return fmt.Sprintf(`{"id":%q,"user_id":"ada","status":%q,"total":{"amount":1890,"currency":"EUR"},`+
		`"items":[{"sku":"sku-mug","name":"Mug","quantity":1,"unit_price":1890}],"created_at":"2026-01-02T03:04:05Z","extra":"kept"}`, id, f.orders[id])
}

func orderID(n int) string { return fmt.Sprintf("0199c0de-0000-7000-8000-%012d", n) }

func newFakeAPI(t *testing.T, statuses ...string) (*fakeAPI, string) {
	t.Helper()
	api := &fakeAPI{orders: map[string]string{}, fate: "completed"}
	for i, status := range statuses {
		api.orders[orderID(i+1)] = status
	}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	return api, server.URL
}

// unused returns the address of a port that nothing listens on.
func unused(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestExitCodesTellScriptsWhatHappened(t *testing.T) {
	t.Parallel()
	_, base := newFakeAPI(t, "completed", "pending")
	failing, failingBase := newFakeAPI(t)
	failing.fate = "payment_failed"
	slow, slowBase := newFakeAPI(t)
	slow.fate = "pending"
	api := func(base string, args ...string) []string { return append(args, "--api", base, "--api-key", "key") }
	nowhere := unused(t)
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr string // what it must say
	}{
		{"a command that works", []string{"version"}, 0, ""},
		{"a group of commands by itself shows its help", []string{"orders"}, 0, ""},
		{"an unknown command", []string{"order-me"}, 2, "--help"},
		{"a misspelled command is suggested", []string{"gruops"}, 2, "orderflow groups"},
		{"an unknown word below a group", []string{"orders", "frobnicate"}, 2, "orderflow orders --help"},
		{"an unknown flag", []string{"orders", "list", "--nope"}, 2, "--nope"},
		{"a missing argument", []string{"orders", "get"}, 2, "orders get ID"},
		{"a bad value", api(base, "orders", "list", "--limit", "0"), 2, "--limit"},
		{"an unknown output format", api(base, "orders", "list", "-o", "xml"), 2, "jsonl"},
		{"an order without a user", api(base, "orders", "create"), 2, "--random"},
		{"an order that exists", api(base, "orders", "get", orderID(1)), 0, ""},
		{"a timeline without the rest of the system", api(base, "orders", "timeline", orderID(1), "--data-dir", t.TempDir()), 0, "--database-url and --kafka"},
		{"an order that does not exist", api(base, "orders", "get", orderID(99)), 3, orderID(99)},
		{"a cancel that comes too late", api(base, "orders", "cancel", orderID(1)), 4, "the order is completed"},
		{"a refund without a reason", api(base, "orders", "refund", orderID(1)), 2, "--reason"},
		{"a refund of an order that does not exist", api(base, "orders", "refund", orderID(99), "--reason", "broken"), 3, orderID(99)},
		{"a wrong key", []string{"orders", "list", "--api", base, "--api-key", "wrong"}, 1, "--api-key"},
		{"an api that is not there", api("http://"+nowhere, "orders", "list"), 5, nowhere},
		{"no system at all", []string{"orders", "list", "--data-dir", t.TempDir()}, 5, "--api URL"},
		{"an order that completes", api(base, "orders", "create", "--random", "--wait"), 0, ""},
		{"an order that fails", api(failingBase, "orders", "create", "--random", "--wait"), 1, "payment_failed"},
		{"an order that takes too long", api(slowBase, "orders", "create", "--random", "--wait", "--timeout", "300ms"), 124, "still pending"},
		{"a migration of nothing", []string{"migrate"}, 2, "--database-url"},
		{"a migration without Postgres", []string{"migrate", "--database-url", "postgres://me@" + nowhere + "/x", "--role-password", "secret"}, 5, "connect"},
		{"dead letters without Postgres", []string{"dlq", "list", "--database-url", "postgres://me@" + nowhere + "/x"}, 5, "Postgres"},
		{"dead letters without a name", []string{"dlq", "show", "12"}, 2, "dlq list"},
		{"a replay of everything by accident", []string{"dlq", "replay", "--database-url", "postgres://me@" + nowhere + "/x"}, 2, "--all"},
		{"a discard without a reason", []string{"dlq", "discard", "email/1"}, 2, "--reason"},
		{"payments compared over no time", []string{"payments", "reconcile", "--since", "5m", "--until", "1h"}, 2, "--until"},
		{"payments compared without a system", []string{"payments", "reconcile", "--data-dir", t.TempDir()}, 5, "--payment-url URL"},
		{"outboxes without Postgres", []string{"outbox", "status", "--database-url", "postgres://me@" + nowhere + "/x"}, 5, "Postgres"},
		{"a release of everything by accident", []string{"outbox", "release"}, 2, "--all"},
		{"a release of some and all", []string{"outbox", "release", "u1", "--all"}, 2, "not both"},
		{"a message given up without a reason", []string{"outbox", "discard", "u1"}, 2, "--reason"},
		{"a replay without a beginning", []string{"outbox", "replay"}, 2, "--since is required"},
		{"a replay from some day", []string{"outbox", "replay", "--since", "yesterday"}, 2, "90m"},
		{"a replay that ends before it begins", []string{"outbox", "replay", "--since", "5m", "--until", "10m"}, 2, "--until"},
		{"a watch that would not be JSON", []string{"outbox", "status", "--watch", "-o", "json"}, 2, "jsonl"},
		{"a doctor without patience", []string{"outbox", "doctor", "--max-age", "0s"}, 2, "--max-age"},
		{"a load of nothing", api(base, "load", "--rate", "0"), 2, "--rate"},
		{"shares above one", api(base, "load", "--declines", "0.7", "--slow", "0.7"), 2, "more than 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := orderflow(t.Context(), tc.args...)
			if got.code != tc.code || !strings.Contains(got.stderr, tc.stderr) {
				t.Errorf("orderflow %s = exit %d, stderr %q; want exit %d, stderr with %q", strings.Join(tc.args, " "), got.code, got.stderr, tc.code, tc.stderr)
			}
			if got.code != 0 && !strings.HasPrefix(got.stderr, "orderflow: ") {
				t.Errorf("orderflow %s: stderr %q, want it to begin with the program's name", strings.Join(tc.args, " "), got.stderr)
			}
		})
	}
}

func TestAnInterruptedCommandExitsWith130(t *testing.T) {
	t.Parallel()
	api, base := newFakeAPI(t)
	api.fate = "pending"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := orderflow(ctx, "orders", "list", "--api", base, "--api-key", "key"); got.code != 130 {
		t.Errorf("exit %d after an interrupt, want 130 (%s)", got.code, got.stderr)
	}
}

func TestCreateRepeatsAnUnknownOutcomeUnderTheSameKey(t *testing.T) {
	t.Parallel()
	api, base := newFakeAPI(t)
	api.refuse = http.StatusServiceUnavailable
	got := orderflow(t.Context(), "orders", "create", "--user", "ada", "--item", "sku-mug=2", "--api", base, "--api-key", "key")
	if got.code != 0 || len(api.keys) != 2 || api.keys[0] != api.keys[1] || api.bodies[0] != api.bodies[1] {
		t.Errorf("exit %d with keys %v and bodies %v; want one repetition, the same in all (%s)", got.code, api.keys, api.bodies, got.stderr)
	}
	var sent map[string]any
	if err := json.Unmarshal([]byte(api.bodies[0]), &sent); err != nil || sent["email"] != "ada@example.com" || sent["payment_method"] != "pm_ok" {
		t.Errorf("sent %s, %v; want defaults filled in", api.bodies[0], err)
	}
}
