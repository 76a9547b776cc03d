package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/services/api"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// Keys that every test database knows.
const (
	serviceKey = "service-key-of-the-tests"
	adaKey     = "user-key-of-ada-in-the-tests"
	benKey     = "user-key-of-ben-in-the-tests"
	revokedKey = "revoked-key-of-the-tests"
)

// newDB returns a database with a catalog and keys.
func newDB(t testing.TB) *pgtest.DB {
	t.Helper()
	db := migrated.New(t)
	ctx := t.Context()
	if err := order.SeedCatalog(ctx, db.Pool); err != nil {
		t.Fatal(err)
	}
	expensive := order.Offer{Product: order.Product{SKU: "sku-ship", Name: "Ship", UnitPrice: 90_000_000_00, Currency: "EUR"}, Stock: 10}
	dollars := order.Offer{Product: order.Product{SKU: "sku-usd", Name: "Sold in dollars", UnitPrice: 5_00, Currency: "USD"}, Stock: 10}
	if err := order.AddProducts(ctx, db.Pool, []order.Offer{expensive, dollars}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []api.Key{
		{Secret: serviceKey, Role: api.RoleService, Name: "service"},
		{Secret: adaKey, Role: api.RoleUser, UserID: "ada", Name: "ada"},
		{Secret: benKey, Role: api.RoleUser, UserID: "ben", Name: "ben"},
		{Secret: revokedKey, Role: api.RoleService, Name: "revoked"},
	} {
		if err := api.AddKey(ctx, db.Pool, key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Pool.Exec(ctx, `UPDATE orders.api_keys SET revoked_at = now() WHERE name = 'revoked'`); err != nil {
		t.Fatal(err)
	}
	return db
}

// server is one running api.
type server struct {
	url    string
	client *http.Client
	stop   func()       // ends it as SIGTERM does
	done   <-chan error // what Run returned
	seen   func(c call, status int)
}

// start runs an api on db until the test ends.
func start(t testing.TB, db *pgtest.DB, change func(*api.Config)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := api.Config{Listener: ln, DatabaseURL: db.RoleURL("orders"), MaxConns: 4, RatePerSecond: 10_000}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx, slog.New(slog.NewTextHandler(testLog{t}, nil)), cfg) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	s := &server{url: "http://" + ln.Addr().String(), client: &http.Client{Transport: transport}, stop: cancel, done: done, seen: func(call, int) {}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("api.Run = %v", err)
		}
		done <- nil // for a test that waited itself
	})
	eventually(t, "the api is ready", func() bool {
		resp, err := s.client.Get(s.url + "/healthz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return s
}

// testLog shows the api's log in the test's.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil { // a finished test must not log
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// eventually waits for an effect.
func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !happened() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// reply is one answer with its whole body.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // no answer
}

func (r reply) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), into); err != nil {
		t.Fatalf("decode %d %q: %v", r.status, r.body, err)
	}
}

// id returns the id of the order in the body.
func (r reply) id(t *testing.T) string {
	t.Helper()
	var o struct{ ID string }
	r.decode(t, &o)
	return o.ID
}

// pointers returns where the mistakes of a problem are.
func (r reply) pointers(t *testing.T) []string {
	t.Helper()
	var p struct {
		Errors []struct{ Pointer, Location string }
	}
	r.decode(t, &p)
	var all []string
	for _, e := range p.Errors {
		all = append(all, e.Pointer+e.Location)
	}
	slices.Sort(all)
	return all
}

// call is one request. Zero values are left out.
type call struct {
	method, path string
	host         string // default the server's
	key          string // API key; "-" for none
	idempotency  string
	contentType  string // default application/json, if there is a body; "-" for none
	body         string
	chunked      bool // without a Content-Length
	endless      bool // the body's end is never sent
	header       http.Header
}

func (s *server) do(t testing.TB, c call) reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second) // nothing here takes as long, unless it hangs
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, c.method, s.url+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = c.host
	if c.chunked {
		req.ContentLength = -1
	}
	if c.endless {
		never, end := io.Pipe()
		defer end.Close()
		req.Body = io.NopCloser(io.MultiReader(req.Body, never))
	}
	for name, values := range c.header {
		req.Header[name] = values
	}
	req.GetBody = nil // the transport must not repeat a request by itself
	if c.key == "" {
		c.key = serviceKey
	}
	if c.key != "-" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if c.idempotency != "" {
		req.Header.Set("Idempotency-Key", c.idempotency)
	}
	if c.body != "" && c.contentType == "" {
		c.contentType = "application/json"
	}
	if c.contentType != "" && c.contentType != "-" {
		req.Header.Set("Content-Type", c.contentType)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	s.seen(c, resp.StatusCode)
	raw, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: string(raw), err: err}
}

// orderBody is a good order by userID.
func orderBody(userID string) string {
	return `{"user_id":"` + userID + `","currency":"EUR","email":"ada@example.com","payment_method":"pm_ok","items":[{"sku":"sku-mug","quantity":2}]}`
}

// edited is a good order by ada with one member replaced.
func edited(name, value string) string {
	var o map[string]json.RawMessage
	if err := json.Unmarshal([]byte(orderBody("ada")), &o); err != nil {
		panic(err)
	}
	o[name] = json.RawMessage(value)
	var b bytes.Buffer
	b.WriteString("{")
	for i, field := range slices.Sorted(func(yield func(string) bool) {
		for k := range o {
			if !yield(k) {
				return
			}
		}
	}) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "%q:%s", field, o[field])
	}
	b.WriteString("}")
	return b.String()
}

// place places a good order and returns its id.
func (s *server) place(t *testing.T, userID string) string {
	t.Helper()
	r := s.do(t, call{method: "POST", path: "/v1/orders", idempotency: uuid.NewString(), body: orderBody(userID)})
	if r.status != http.StatusCreated {
		t.Fatalf("POST /v1/orders = %d %s %v", r.status, r.body, r.err)
	}
	return r.id(t)
}

// count runs a query that returns one number.
func count(t *testing.T, db *pgtest.DB, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := db.Pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
