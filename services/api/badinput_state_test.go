package api_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/order"
)

// rowsWithState are the rows of the contract that need something to have happened before.
func rowsWithState() []badInput {
	return []badInput{
		{row: "another user's order", make: getAdas, want: 404, check: sameAsMissing},
		{row: "a cursor of another list", call: get("/v1/products"), want: 200, check: cursorOfAnotherList},
		{row: "known SKU without stock", call: post(edited("items", `[{"sku":"`+order.SoldOut+`","quantity":1}]`)), want: 201},
		{row: "text that looks like SQL", call: post(edited("payment_method", `"'; DROP TABLE orders; --"`)), want: 201, check: storedVerbatim(`'; DROP TABLE orders; --`)},
		{row: "text that looks like HTML", call: post(edited("payment_method", `"<script>alert(1)</script>"`)), want: 201, check: storedVerbatim(`<script>alert(1)</script>`)},
		{row: "CRLF in text", call: post(edited("payment_method", `"pm_ok\r\nX-Evil: 1"`)), want: 201, check: storedVerbatim("pm_ok\r\nX-Evil: 1")},
		{row: "over the rate", server: "limited", call: call{method: "GET", path: "/v1/products", key: adaKey}, want: 429, before: spend},
		{row: "overload", server: "full", call: get("/v1/products"), want: 503, before: occupy},
		{row: "Postgres away", server: "without postgres", call: get("/v1/products"), want: 503},
		{row: "Postgres away", name: "an order", server: "without postgres", call: post(orderBody("ada")), want: 503},
		{row: "cancel after completion", make: cancelCompleted, want: 409},
		{row: "cancel twice", call: get("/v1/products"), want: 200, check: cancelTwice},
		{row: "refund before completion", make: refundPending, want: 409},
		{row: "refund twice", call: get("/v1/products"), want: 200, check: refundTwice},
		{row: "handler panic", server: "panicking", call: post(orderBody("ada")), want: 500, check: connectionSurvives},
		{row: "Idempotency-Key with another body", call: call{method: "POST", path: "/v1/orders", idempotency: "other-body", body: edited("items", `[{"sku":"sku-tea","quantity":1}]`)}, want: 422, pointers: []string{"header.Idempotency-Key"}, before: placed("other-body", "ada", http.StatusCreated)},
		{row: "Idempotency-Key in flight", call: call{method: "POST", path: "/v1/orders", idempotency: "in-flight", body: orderBody("slow")}, want: 409, before: inFlight, check: hasRetryAfter},
		{row: "Idempotency-Key done", call: call{method: "POST", path: "/v1/orders", idempotency: "done", body: orderBody("ada")}, want: 201, before: placed("done", "ada", http.StatusCreated), check: replayed("done")},
		{row: "Idempotency-Key done", name: "the same request in other white space", call: call{method: "POST", path: "/v1/orders", idempotency: "spaces", body: " " + strings.ReplaceAll(orderBody("ada"), ",", ", ")}, want: 201, before: placed("spaces", "ada", http.StatusCreated), check: replayed("spaces")},
		{row: "Idempotency-Key of another user", call: call{method: "POST", path: "/v1/orders", idempotency: "shared", body: orderBody("ben")}, want: 201, before: placed("shared", "ada", http.StatusCreated), check: isNew},
	}
}

func getAdas(_ *testing.T, f *fixture) call {
	return call{method: "GET", path: "/v1/orders/" + f.adas, key: benKey}
}

func sameAsMissing(t *testing.T, f *fixture, _ reply) {
	s := f.servers["plain"]
	for path, method := range map[string]string{"": "GET", "?wait_for=terminal": "GET", "/timeline": "GET", "/events": "GET", "/cancel": "POST"} {
		foreign := s.do(t, call{method: method, path: "/v1/orders/" + f.adas + path, key: benKey})
		missing := s.do(t, call{method: method, path: "/v1/orders/" + uuid.NewString() + path, key: benKey})
		if foreign.status != 404 || foreign.body != missing.body {
			t.Errorf("%s %s of a foreign order = %d %s, of a missing one %d %s; want the same 404",
				method, path, foreign.status, foreign.body, missing.status, missing.body)
		}
	}
	if own := s.do(t, call{method: "GET", path: "/v1/orders/" + f.adas, key: adaKey}); own.status != 200 {
		t.Errorf("GET of her own order = %d %s", own.status, own.body)
	}
}

func cursorOfAnotherList(t *testing.T, f *fixture, _ reply) {
	s := f.servers["plain"]
	s.place(t, "ada")
	var page struct {
		Cursor string `json:"next_cursor"`
	}
	s.do(t, get("/v1/orders?user_id=ada&limit=1")).decode(t, &page)
	for _, path := range []string{
		"/v1/orders?user_id=ben&limit=1&cursor=" + page.Cursor,
		"/v1/orders?limit=1&cursor=" + page.Cursor,
		"/v1/products?cursor=" + page.Cursor,
		"/v1/orders?user_id=ada&limit=1&cursor=" + url.QueryEscape(page.Cursor+"A"),
	} {
		if got := s.do(t, get(path)); got.status != 400 {
			t.Errorf("GET %s = %d %s, want 400", path, got.status, got.body)
		}
	}
	if got := s.do(t, get("/v1/orders?user_id=ada&limit=1&cursor="+page.Cursor)); got.status != 200 {
		t.Errorf("the list's own cursor = %d %s", got.status, got.body)
	}
}

func storedVerbatim(text string) func(*testing.T, *fixture, reply) {
	return func(t *testing.T, f *fixture, r reply) {
		got := f.servers["plain"].do(t, get(r.header.Get("Location")))
		var o struct {
			Method string `json:"payment_method"`
		}
		got.decode(t, &o)
		if o.Method != text {
			t.Errorf("payment_method reads back as %q, want %q", o.Method, text)
		}
		if strings.Contains(got.body, "<") {
			t.Errorf("the answer holds an unescaped <: %s", got.body)
		}
		if n := count(t, f.db, `SELECT count(*) FROM orders.orders WHERE id = $1 AND payment_method = $2`, r.id(t), text); n != 1 {
			t.Errorf("%d rows hold the text verbatim, want 1", n)
		}
	}
}

// spend uses up ada's rate.
func spend(t *testing.T, f *fixture) func() {
	if r := f.servers["limited"].do(t, call{method: "GET", path: "/v1/products", key: adaKey}); r.status != 200 && r.status != 429 {
		t.Fatalf("GET /v1/products = %d %s", r.status, r.body)
	}
	return func() {}
}

// occupy fills the only slot of the server with a request that waits for a lock.
func occupy(t *testing.T, f *fixture) func() {
	return begin(t, f, "full", "occupied", http.StatusCreated)
}

// inFlight begins the row's own request and lets it wait.
func inFlight(t *testing.T, f *fixture) func() {
	return begin(t, f, "plain", "in-flight", http.StatusCreated)
}

// begin sends an order that waits for its user's lock, and returns when it does. The returned function lets it go on.
func begin(t *testing.T, f *fixture, server, key string, want int) func() {
	s := f.servers[server]
	if r := s.do(t, get("/v1/products")); r.status != 200 { // so that the key of the api is known
		t.Fatalf("GET /v1/products = %d %s", r.status, r.body)
	}
	release := hold(t, f.db, "slow")
	done := make(chan reply, 1)
	go func() {
		done <- s.do(t, call{method: "POST", path: "/v1/orders", idempotency: key, body: orderBody("slow")})
	}()
	eventually(t, "the order waits for the lock", func() bool { return waiting(t, f.db) })
	return func() {
		release()
		if r := <-done; r.status != want {
			t.Errorf("the order that waited = %d %s %v, want %d", r.status, r.body, r.err, want)
		}
	}
}

func hasRetryAfter(t *testing.T, _ *fixture, r reply) {
	if r.header.Get("Retry-After") == "" {
		t.Error("409 without Retry-After")
	}
}

func cancelCompleted(t *testing.T, f *fixture) call {
	id := f.servers["plain"].place(t, "ada")
	setStatus(t, f.db, id, order.Pending, order.Completed)
	return call{method: "POST", path: "/v1/orders/" + id + "/cancel", key: adaKey}
}

// refund asks for a refund of the order at path.
func refund(path, body string, edit ...func(*call)) call {
	c := call{method: "POST", path: path + "/refund", body: body}
	for _, f := range edit {
		f(&c)
	}
	return c
}

func refundPending(t *testing.T, f *fixture) call {
	return refund("/v1/orders/"+f.servers["plain"].place(t, "ada"), `{"reason":"broken"}`)
}

func refundTwice(t *testing.T, f *fixture, _ reply) {
	s := f.servers["plain"]
	id := s.place(t, "ada")
	setStatus(t, f.db, id, order.Pending, order.Completed)
	first := s.do(t, refund("/v1/orders/"+id, `{"reason":"broken"}`))
	setStatus(t, f.db, id, order.Completed, order.Refunded)
	second := s.do(t, refund("/v1/orders/"+id, `{"reason":"asked for again"}`))
	if first.status != 202 || second.status != 202 || first.body != second.body || !strings.Contains(first.body, `"requested_by":"`) {
		t.Errorf("refund twice = %d %s and %d %s, want the same 202", first.status, first.body, second.status, second.body)
	}
	if n := count(t, f.db, `SELECT count(*) FROM orders.outbox WHERE type = 'order.refund_requested.v1' AND convert_from(payload, 'UTF8') LIKE '%' || $1 || '%'`, id); n != 1 {
		t.Errorf("%d messages about the refund, want 1", n)
	}
	if n := count(t, f.db, `SELECT count(*) FROM orders.refunds WHERE order_id = $1::text::uuid AND requested_by <> '' AND reason = 'broken'`, id); n != 1 {
		t.Errorf("%d rows tell who asked for the refund, want 1", n)
	}
}

func cancelTwice(t *testing.T, f *fixture, _ reply) {
	s := f.servers["plain"]
	id := s.place(t, "ada")
	first := s.do(t, call{method: "POST", path: "/v1/orders/" + id + "/cancel", key: adaKey})
	setStatus(t, f.db, id, order.Pending, order.Cancelled)
	second := s.do(t, call{method: "POST", path: "/v1/orders/" + id + "/cancel", key: adaKey, body: "{}"})
	if first.status != 202 || second.status != 202 || first.body != second.body {
		t.Errorf("cancel twice = %d %s and %d %s, want the same 202", first.status, first.body, second.status, second.body)
	}
	if n := count(t, f.db, `SELECT count(*) FROM orders.outbox WHERE type = 'order.cancel_requested.v1' AND convert_from(payload, 'UTF8') LIKE '%' || $1 || '%'`, id); n != 1 {
		t.Errorf("%d messages about the cancel, want 1", n)
	}
}

// connectionSurvives sends another request and wants it to use the connection of the one that panicked.
func connectionSurvives(t *testing.T, f *fixture, _ reply) {
	s := f.servers["panicking"]
	var reused bool
	resp, err := s.client.Do(tracedRequest(t, s.url+"/healthz", &reused))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !reused {
		t.Errorf("the next request = %d, on the same connection: %v; want 200 on the same", resp.StatusCode, reused)
	}
}

// placed sends the request whose key the row uses again.
func placed(key, userID string, want int) func(*testing.T, *fixture) func() {
	return func(t *testing.T, f *fixture) func() {
		r := f.servers["plain"].do(t, call{method: "POST", path: "/v1/orders", idempotency: key, body: orderBody(userID)})
		if r.status != want {
			t.Fatalf("POST = %d %s, want %d", r.status, r.body, want)
		}
		f.first = r
		return func() {}
	}
}

func replayed(key string) func(*testing.T, *fixture, reply) {
	return func(t *testing.T, f *fixture, r reply) {
		if r.header.Get("Idempotent-Replayed") != "true" {
			t.Error("no Idempotent-Replayed: true")
		}
		if f.first.header.Get("Idempotent-Replayed") != "" {
			t.Error("the first answer says that it is a replay")
		}
		if r.status != f.first.status || r.body != f.first.body {
			t.Errorf("replay = %d %s, want what was answered first: %d %s", r.status, r.body, f.first.status, f.first.body)
		}
		for _, name := range []string{"Location", "Etag", "Content-Type"} {
			if got, want := r.header.Get(name), f.first.header.Get(name); got != want || want == "" {
				t.Errorf("%s = %q, and %q at first; want the same", name, got, want)
			}
		}
		if n := count(t, f.db, `SELECT count(*) FROM orders.idempotency_keys WHERE key = $1`, key); n != 1 {
			t.Errorf("%d rows of the key, want 1", n)
		}
	}
}

func isNew(t *testing.T, f *fixture, r reply) {
	if r.header.Get("Idempotent-Replayed") != "" {
		t.Error("another user's key was replayed")
	}
	if n := count(t, f.db, `SELECT count(DISTINCT user_id) FROM orders.idempotency_keys WHERE key = 'shared'`); n != 2 {
		t.Errorf("the key is stored for %d users, want 2", n)
	}
}
