package api_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/services/api"
)

// canary stands in bad requests and must not stand in any answer.
const canary = "canary7c1"

// badInput is one row of the contract on bad requests: what is sent, and what is answered.
type badInput struct {
	row      string // the scenario's words
	name     string
	server   string // which of the servers; default "plain"
	call     call
	want     int
	pointers []string                            // where the mistakes are, when that is promised
	make     func(t *testing.T, f *fixture) call // the call, if it depends on what is there
	before   func(t *testing.T, f *fixture) (after func())
	check    func(t *testing.T, f *fixture, r reply)
}

// fixture is one database with servers that differ in their limits.
type fixture struct {
	db      *pgtest.DB
	servers map[string]*server
	adas    string // id of an order of ada's
	first   reply  // to the request that a row repeats
	seen    seen
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{db: newDB(t), servers: map[string]*server{}, seen: seen{statuses: map[string]map[int]bool{}}}
	gate := newProxy(t, f.db)
	f.servers["plain"] = start(t, f.db, nil)
	f.servers["limited"] = start(t, f.db, func(c *api.Config) { c.RatePerSecond, c.RateBurst = 1, 1 })
	f.servers["impatient"] = start(t, f.db, func(c *api.Config) { c.MaxConns, c.MaxInFlight, c.BodyTimeout = 1, 1, 2*time.Second })
	f.servers["full"] = start(t, f.db, func(c *api.Config) { c.MaxInFlight = 1 })
	f.servers["panicking"] = start(t, f.db, func(c *api.Config) { c.AfterCommit = func() { panic(canary) } })
	f.servers["without postgres"] = start(t, f.db, func(c *api.Config) { c.DatabaseURL = gate.url(t, f.db) })
	for _, s := range f.servers {
		s.seen = f.seen.add
	}
	gate.refuse()
	f.adas = f.servers["plain"].place(t, "ada")
	return f
}

func post(body string) call {
	return call{method: "POST", path: "/v1/orders", idempotency: uuid.NewString(), body: body}
}

// chunked sends the body without telling its length.
func chunked(c call) call {
	c.chunked = true
	return c
}

// endless sends the body and never its end.
func endless(c call) call {
	c.chunked, c.endless = true, true
	return c
}

func get(path string) call { return call{method: "GET", path: path} }

func manyItems(n int) string {
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf(`{"sku":"sku-%d","quantity":1}`, i)
	}
	return "[" + strings.Join(items, ",") + "]"
}

func rows() []badInput {
	missing := "/v1/orders/" + uuid.NewString()
	rows := []badInput{
		{row: "missing key", call: call{method: "GET", path: "/v1/orders", key: "-"}, want: 401, check: same401},
		{row: "unknown key", call: call{method: "GET", path: "/v1/orders", key: canary + "-is-a-key-nobody-has"}, want: 401, check: same401},
		{row: "revoked key", call: call{method: "GET", path: "/v1/orders", key: revokedKey}, want: 401, check: same401},
		{row: "missing key", name: "another scheme", call: call{method: "GET", path: "/v1/orders", key: "-", header: http.Header{"Authorization": {"Basic " + canary}}}, want: 401, check: same401},
		{row: "missing key", name: "two of them", call: call{method: "GET", path: "/v1/orders", key: "-", header: http.Header{"Authorization": {"Bearer " + adaKey, "Bearer " + benKey}}}, want: 401, check: same401},
		{row: "missing key", name: "also with a body", call: call{method: "POST", path: "/v1/orders", key: "-", body: orderBody("ada")}, want: 401, check: same401},
		{row: "admin route with a user key", call: call{method: "GET", path: "/v1/admin/overview", key: adaKey}, want: 403},
		{row: "a user key that lists another user's orders", call: call{method: "GET", path: "/v1/orders?user_id=ben", key: adaKey}, want: 403},
		{row: "not JSON", name: "text", call: call{method: "POST", path: "/v1/orders", idempotency: "k", contentType: "text/plain", body: orderBody("ada")}, want: 415},
		{row: "not JSON", name: "no content type", call: call{method: "POST", path: "/v1/orders", idempotency: "k", contentType: "-", body: orderBody("ada")}, want: 415},
		{row: "not JSON", name: "a form", call: call{method: "POST", path: "/v1/orders", idempotency: "k", contentType: "application/x-www-form-urlencoded", body: "user_id=" + canary}, want: 415},
		{row: "not JSON", name: "compressed", call: call{method: "POST", path: "/v1/orders", idempotency: "k", body: orderBody("ada"), header: http.Header{"Content-Encoding": {"gzip"}}}, want: 415},
		{row: "body over 64 KiB", call: post(edited("payment_method", `"`+strings.Repeat("a", 64<<10)+`"`)), want: 413},
		{row: "body over 64 KiB", name: "of a length not told", call: chunked(post(edited("payment_method", `"`+strings.Repeat("a", 64<<10)+`"`))), want: 413},
		{row: "slow body", server: "impatient", call: endless(post(orderBody("ada"))), want: 408, before: slowClients},
		{row: "not JSON", name: "to cancel", call: call{method: "POST", path: missing + "/cancel", contentType: "text/plain", body: "{}"}, want: 415},
		{row: "body over 64 KiB", name: "to cancel", call: call{method: "POST", path: missing + "/cancel", body: strings.Repeat(" ", 65<<10)}, want: 413},
		{row: "slow body", name: "to cancel", server: "impatient", call: endless(call{method: "POST", path: missing + "/cancel", body: "{"}), want: 408},
		{row: "malformed body", name: "to cancel", call: call{method: "POST", path: missing + "/cancel", body: "{"}, want: 400},
		{row: "unknown field", name: "to cancel", call: call{method: "POST", path: missing + "/cancel", body: `{"reason":"` + canary + `"}`}, want: 422, pointers: []string{"/reason"}},
		{row: "not JSON", name: "to refund", call: refund(missing, "{}", func(c *call) { c.contentType = "text/plain" }), want: 415},
		{row: "body over 64 KiB", name: "to refund", call: refund(missing, strings.Repeat(" ", 65<<10)), want: 413},
		{row: "slow body", name: "to refund", server: "impatient", call: endless(refund(missing, "{")), want: 408},
		{row: "malformed body", name: "to refund", call: refund(missing, "{"), want: 400},
		{row: "empty body", name: "to refund", call: refund(missing, ""), want: 400},
		{row: "missing required", name: "to refund", call: refund(missing, "{}"), want: 422, pointers: []string{"/reason"}},
		{row: "unknown field", name: "to refund", call: refund(missing, `{"reason":"broken","amount":1}`), want: 422, pointers: []string{"/amount"}},
		{row: "control characters", name: "in the reason of a refund", call: refund(missing, `{"reason":"a\r\nb"}`), want: 422, pointers: []string{"/reason"}},
		{row: "missing order", name: "to refund", call: refund(missing, `{"reason":"broken"}`), want: 404},
		{row: "a user key that refunds", call: refund(missing, `{"reason":"broken"}`, func(c *call) { c.key = adaKey }), want: 403},
		{row: "malformed body", call: post(`{"user_id":"` + canary), want: 400},
		{row: "empty body", call: post(""), want: 400},
		{row: "empty body", name: "white space", call: post("  \n"), want: 400},
		{row: "trailing data", call: post(orderBody("ada") + orderBody("ada")), want: 400},
		{row: "null body", call: post("null"), want: 400},
		{row: "null body", name: "an array", call: post("[]"), want: 400},
		{row: "a user key that posts another user_id", call: call{method: "POST", path: "/v1/orders", key: adaKey, idempotency: "k", body: orderBody("ben")}, want: 403},
		{row: "unknown field", call: post(edited("discount", `"`+canary+`"`)), want: 422, pointers: []string{"/discount"}},
		{row: "unknown field", name: "price in an item", call: post(edited("items", `[{"sku":"sku-mug","quantity":1,"price":1}]`)), want: 422, pointers: []string{"/items/0/price"}},
		{row: "unknown field", name: "status", call: post(edited("status", `"completed"`)), want: 422, pointers: []string{"/status"}},
		{row: "unknown field", name: "a name in other letters", call: post(edited("USER_ID", `"ada"`)), want: 422, pointers: []string{"/USER_ID"}},
		{row: "unknown field", name: "its name is not repeated", call: post(edited("<"+canary+">", `1`)), want: 422},
		{row: "wrong type", call: post(edited("user_id", `7`)), want: 422, pointers: []string{"/user_id"}},
		{row: "wrong type", name: "quantity as text", call: post(edited("items", `[{"sku":"sku-mug","quantity":"1"}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "wrong type", name: "items as an object", call: post(edited("items", `{}`)), want: 422, pointers: []string{"/items"}},
		{row: "wrong type", name: "null", call: post(edited("email", `null`)), want: 422, pointers: []string{"/email"}},
		{row: "1.0", call: post(edited("items", `[{"sku":"sku-mug","quantity":1.0}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "1e2", call: post(edited("items", `[{"sku":"sku-mug","quantity":1e2}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "beyond int64", call: post(edited("items", `[{"sku":"sku-mug","quantity":9223372036854775808}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "missing required", call: post(`{}`), want: 422, pointers: []string{"/currency", "/email", "/items", "/payment_method", "/user_id"}},
		{row: "missing required", name: "in an item", call: post(edited("items", `[{}]`)), want: 422, pointers: []string{"/items/0/quantity", "/items/0/sku"}},
		{row: "NUL", call: post(edited("payment_method", `"`+canary+`\u0000"`)), want: 422, pointers: []string{"/payment_method"}},
		{row: "control characters", call: post(edited("payment_method", `"`+canary+`\u001b[2J"`)), want: 422, pointers: []string{"/payment_method"}},
		{row: "control characters", name: "raw", call: post(edited("payment_method", `"`+canary+"\x07"+`"`)), want: 400},
		{row: "control characters", name: "CRLF in an address", call: post(edited("email", `"a@example.com\r\nBcc: `+canary+`@example.com"`)), want: 422, pointers: []string{"/email"}},
		{row: "bad UTF-8", call: post(strings.Replace(orderBody("ada"), "pm_ok", canary+"\xff", 1)), want: 400},
		{row: "bad UTF-8", name: "half a character, escaped", call: post(edited("payment_method", `"\ud800"`)), want: 400},
		{row: "quantity 0", call: post(edited("items", `[{"sku":"sku-mug","quantity":0}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "quantity -1", call: post(edited("items", `[{"sku":"sku-mug","quantity":-1}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "quantity over 1000", call: post(edited("items", `[{"sku":"sku-mug","quantity":1001}]`)), want: 422, pointers: []string{"/items/0/quantity"}},
		{row: "no items", call: post(edited("items", `[]`)), want: 422, pointers: []string{"/items"}},
		{row: "over 100 items", call: post(edited("items", manyItems(101))), want: 422, pointers: []string{"/items"}},
		{row: "same SKU twice", call: post(edited("items", `[{"sku":"sku-mug","quantity":1},{"sku":"sku-mug","quantity":1}]`)), want: 422, pointers: []string{"/items/1/sku"}},
		{row: "total beyond the limit", call: post(edited("items", `[{"sku":"sku-ship","quantity":2}]`)), want: 422, pointers: []string{"/items"}},
		{row: "mixed currency", call: post(edited("items", `[{"sku":"sku-mug","quantity":1},{"sku":"sku-usd","quantity":1}]`)), want: 422, pointers: []string{"/items/1/sku"}},
		{row: "unknown currency", call: post(edited("currency", `"XTS"`)), want: 422, pointers: []string{"/currency", "/items/0/sku"}},
		{row: "unknown currency", name: "not a code", call: post(edited("currency", `"euro"`)), want: 422, pointers: []string{"/currency"}},
		{row: "unknown SKU", call: post(edited("items", `[{"sku":"`+canary+`","quantity":1}]`)), want: 422, pointers: []string{"/items/0/sku"}},
		{
			row: "all mistakes in one answer", name: "the catalog's too", want: 422,
			call:     post(`{"user_id":"a b","currency":"EUR","email":"nobody","payment_method":"","items":[{"sku":"` + canary + `","quantity":0},{"sku":"sku-usd","quantity":1},{"sku":"sku-usd"}],"note":1}`),
			pointers: []string{"/email", "/items/0/quantity", "/items/0/sku", "/items/1/sku", "/items/2/quantity", "/items/2/sku", "/items/2/sku", "/note", "/payment_method", "/user_id"},
		},
		{row: "id not a UUID", call: get("/v1/orders/" + canary), want: 404},
		{row: "id not a UUID", name: "NUL", call: get("/v1/orders/%00"), want: 404},
		{row: "id not a UUID", name: "in braces", call: get("/v1/orders/%7B" + uuid.NewString() + "%7D"), want: 404},
		{row: "id not a UUID", name: "to cancel", call: call{method: "POST", path: "/v1/orders/" + canary + "/cancel"}, want: 404},
		{row: "id not a UUID", name: "its timeline", call: get("/v1/orders/" + canary + "/timeline"), want: 404},
		{row: "missing order", call: get(missing), want: 404},
		{row: "limit -1", call: get("/v1/orders?limit=-1"), want: 400, pointers: []string{"query.limit"}},
		{row: "limit abc", call: get("/v1/orders?limit=abc"), want: 400, pointers: []string{"query.limit"}},
		{row: "limit 1e9", call: get("/v1/orders?limit=1e9"), want: 400, pointers: []string{"query.limit"}},
		{row: "limit 1e9", name: "of products", call: get("/v1/products?limit=1000000000"), want: 400, pointers: []string{"query.limit"}},
		{row: "forged cursor", call: get("/v1/orders?cursor=" + canary), want: 400, pointers: []string{"query.cursor"}},
		{row: "forged cursor", name: "of products", call: get("/v1/products?cursor=AAAAAAAAAAAAAAAAAAAAAAAA"), want: 400, pointers: []string{"query.cursor"}},
		{row: "bad query", name: "status", call: get("/v1/orders?status=" + canary), want: 400, pointers: []string{"query.status"}},
		{row: "bad query", name: "user", call: get("/v1/orders?user_id=%00"), want: 400, pointers: []string{"query.user_id"}},
		{row: "bad query", name: "encoding", call: get("/v1/orders?limit=%zz"), want: 400},
		{row: "bad query", name: "encoding, of an order", call: get(missing + "?%zz"), want: 400},
		{row: "bad query", name: "encoding, of a timeline", call: get(missing + "/timeline?%zz"), want: 400},
		{row: "bad query", name: "encoding, of a stream", call: get(missing + "/events?%zz"), want: 400},
		{row: "bad query", name: "encoding, of the overview", call: get("/v1/admin/overview?%zz"), want: 400},
		{row: "bad query", name: "what to wait for", call: get(missing + "?wait_for=" + canary), want: 400, pointers: []string{"query.wait_for"}},
		{row: "wrong method", call: call{method: "DELETE", path: "/v1/orders"}, want: 405, check: allows("GET, HEAD, POST")},
		{row: "wrong method", name: "of one order", call: call{method: "PUT", path: missing}, want: 405, check: allows("GET, HEAD")},
		{row: "unknown path", call: get("/v2/" + canary), want: 404},
		{row: "unknown path", name: "not cleaned", call: get("//v1/orders"), want: 404},
		{row: "unknown path", name: "a slash more", call: get("/v1/orders/"), want: 404},
		{row: "Idempotency-Key missing", call: call{method: "POST", path: "/v1/orders", body: orderBody("ada")}, want: 400, pointers: []string{"header.Idempotency-Key"}, check: showsTheHeader},
		{row: "Idempotency-Key malformed", call: call{method: "POST", path: "/v1/orders", idempotency: "a b", body: orderBody("ada")}, want: 400, pointers: []string{"header.Idempotency-Key"}},
		{row: "Idempotency-Key malformed", name: "too long", call: call{method: "POST", path: "/v1/orders", idempotency: strings.Repeat("k", 256), body: orderBody("ada")}, want: 400},
		{row: "Idempotency-Key malformed", name: "empty", call: call{method: "POST", path: "/v1/orders", body: orderBody("ada"), header: http.Header{"Idempotency-Key": {""}}}, want: 400},
		{row: "Idempotency-Key twice", call: call{method: "POST", path: "/v1/orders", body: orderBody("ada"), header: http.Header{"Idempotency-Key": {"a", "b"}}}, want: 400},
	}
	return append(rows, rowsWithState()...)
}

// TestBadHTTPInputGetsTheAgreedAnswer is the contract on bad requests, against running servers.
func TestBadHTTPInputGetsTheAgreedAnswer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, tt := range rows() {
		name := tt.row
		if tt.name != "" {
			name += ": " + tt.name
		}
		t.Run(name, func(t *testing.T) {
			if tt.before != nil {
				defer tt.before(t, f)()
			}
			if tt.make != nil {
				tt.call = tt.make(t, f)
			}
			if tt.server == "" {
				tt.server = "plain"
			}
			got := f.servers[tt.server].do(t, tt.call)
			if got.err != nil || got.status != tt.want {
				t.Fatalf("%s %s = %d %s %v, want %d", tt.call.method, tt.call.path, got.status, got.body, got.err, tt.want)
			}
			if tt.want >= 400 {
				isProblem(t, got)
			}
			if tt.pointers != nil {
				if diff := cmp.Diff(tt.pointers, got.pointers(t)); diff != "" {
					t.Errorf("pointers (-want +got):\n%s\n%s", diff, got.body)
				}
			}
			if tt.check != nil {
				tt.check(t, f, got)
			}
		})
	}
	t.Run("the document has every answer", func(t *testing.T) { describesAll(t, f) })
}

// isProblem checks what holds for every answer that is not a success.
func isProblem(t *testing.T, r reply) {
	t.Helper()
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type = %q, want application/problem+json", ct)
	}
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	r.decode(t, &p)
	if p.Status != r.status || p.Title == "" || p.Detail == "" || !strings.HasPrefix(p.Type, "urn:orderflow:problem:") {
		t.Errorf("problem = %+v, want type, title, detail and status %d", p, r.status)
	}
	for _, leak := range []string{canary, "SQLSTATE", "pgx", "ERROR:", "goroutine", ".go:", "SELECT", "INSERT", "ada@example.com"} {
		if strings.Contains(r.body, leak) {
			t.Errorf("the answer holds %q: %s", leak, r.body)
		}
	}
	if r.status == 429 || r.status == 503 {
		if r.header.Get("Retry-After") == "" {
			t.Errorf("%d without Retry-After", r.status)
		}
	}
}

func same401(t *testing.T, f *fixture, r reply) {
	want := f.servers["plain"].do(t, call{method: "GET", path: "/v1/products", key: "-"})
	if r.body != want.body || r.header.Get("WWW-Authenticate") == "" {
		t.Errorf("401 with %s, want the same for every reason: %s", r.body, want.body)
	}
}

func allows(methods string) func(*testing.T, *fixture, reply) {
	return func(t *testing.T, _ *fixture, r reply) {
		if got := r.header.Get("Allow"); got != methods {
			t.Errorf("Allow = %q, want %q", got, methods)
		}
	}
}

func showsTheHeader(t *testing.T, _ *fixture, r reply) {
	if !strings.Contains(r.body, "Idempotency-Key: ") {
		t.Errorf("the answer does not show the header to send: %s", r.body)
	}
}

// slowClients are more than there are slots and connections. They send their bodies slowly, and nobody else notices.
func slowClients(t *testing.T, f *fixture) func() {
	s := f.servers["impatient"]
	var conns []net.Conn
	for range 5 {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /v1/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nIdempotency-Key: k\r\n"+
			"Content-Type: application/json\r\nContent-Length: 200\r\n\r\n{\"user_id\":", serviceKey)
		conns = append(conns, conn)
	}
	s.place(t, "ada") // while the others still send
	return func() {
		for _, conn := range conns {
			_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusRequestTimeout {
				t.Errorf("a slow body got %d, want 408", resp.StatusCode)
			}
			_ = resp.Body.Close()
			_ = conn.Close()
		}
	}
}

// hold locks a user's place in the sequence, so that the user's next order waits.
func hold(t *testing.T, db *pgtest.DB, userID string) (release func()) {
	t.Helper()
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `
		INSERT INTO orders.user_sequences (user_id, last_seq) VALUES ($1, 1)
		ON CONFLICT (user_id) DO UPDATE SET last_seq = user_sequences.last_seq`, userID); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
}
