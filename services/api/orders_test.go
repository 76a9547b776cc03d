package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/services/api"
)

func TestAnOrderIsWhatTheCatalogSays(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	r := s.do(t, call{method: "POST", path: "/v1/orders", key: adaKey, idempotency: uuid.NewString(), body: edited("items", `[{"sku":"sku-tea","quantity":3},{"sku":"sku-mug","quantity":2}]`)})
	if r.status != http.StatusCreated || r.header.Get("ETag") != `"1"` {
		t.Fatalf("POST = %d %s, ETag %s", r.status, r.body, r.header.Get("ETag"))
	}
	got := s.do(t, call{method: "GET", path: r.header.Get("Location"), key: adaKey})
	if got.status != 200 || got.body != r.body || got.header.Get("ETag") != `"1"` {
		t.Errorf("GET of the new order = %d %s, want what the POST answered: %s", got.status, got.body, r.body)
	}
	var o struct {
		ID, Status string
		Total      struct {
			Amount   int64
			Currency string
		}
		Items []struct {
			SKU       string
			Quantity  int64
			UnitPrice int64 `json:"unit_price"`
		}
	}
	r.decode(t, &o)
	if o.Status != "pending" || o.Total.Amount != 3*7_80+2*18_90 || o.Total.Currency != "EUR" || len(o.Items) != 2 || o.Items[0].UnitPrice != 7_80 {
		t.Errorf("order = %+v", o)
	}
	var payload []byte
	if err := db.Pool.QueryRow(t.Context(), `SELECT payload FROM orders.outbox WHERE key = 'ada' AND topic = 'orders'`).Scan(&payload); err != nil {
		t.Fatal(err)
	}
	var placed event.OrderPlaced
	if err := json.Unmarshal(payload, &placed); err != nil {
		t.Fatal(err)
	}
	if placed.OrderID.String() != o.ID || placed.UserSeq != 1 || placed.Total != o.Total.Amount || len(placed.Items) != 2 || placed.Items[1].Name != "Stoneware mug" {
		t.Errorf("message = %+v", placed)
	}
}

func TestWaitForTerminalAnswersWhenTheOrderIsDecided(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, func(c *api.Config) { c.MaxConns = 2 })
	ids := make([]string, 30) // more than there are connections
	for i := range ids {
		ids[i] = s.place(t, "ada")
	}
	var waiters sync.WaitGroup
	var answered atomic.Int32
	for _, id := range ids {
		waiters.Go(func() {
			sent := time.Now()
			r := s.do(t, get("/v1/orders/"+id+"?wait_for=terminal&timeout=60s"))
			if took := time.Since(sent); !strings.Contains(r.body, `"status":"completed"`) || took >= time.Minute {
				t.Errorf("waited for %s: %d %s after %v, want it completed before the timeout", id, r.status, r.body, took)
			}
			answered.Add(1)
		})
	}
	short := s.do(t, get("/v1/orders/"+ids[0]+"?wait_for=terminal&timeout=0.1s"))
	if !strings.Contains(short.body, `"status":"pending"`) || answered.Load() != 0 {
		t.Errorf("a wait that ends early = %d %s, and %d answers before anything happened", short.status, short.body, answered.Load())
	}
	for _, id := range ids {
		setStatus(t, db, id, order.Pending, order.Completed)
	}
	waiters.Wait()
}

func TestBadWaitsAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, newDB(t), nil)
	id := s.place(t, "ada")
	for _, query := range []string{"wait_for=ever", "wait_for=terminal&timeout=soon", "wait_for=terminal&timeout=-1s"} {
		if r := s.do(t, get("/v1/orders/"+id+"?"+query)); r.status != 400 {
			t.Errorf("%s = %d %s, want 400", query, r.status, r.body)
		}
	}
}

func TestETagChangesWithEveryChange(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	id := s.place(t, "ada")
	path := "/v1/orders/" + id
	tag := s.do(t, get(path)).header.Get("ETag")
	same := call{method: "GET", path: path, header: http.Header{"If-None-Match": {`"x", W/` + tag}}}
	if r := s.do(t, same); r.status != http.StatusNotModified || r.body != "" {
		t.Errorf("GET of an unchanged order = %d %q, want an empty 304", r.status, r.body)
	}
	s.do(t, call{method: "POST", path: path + "/cancel"})
	if r := s.do(t, same); r.status != 200 || r.header.Get("ETag") == tag {
		t.Errorf("GET after a cancel was accepted = %d with ETag %s, want 200 with another", r.status, r.header.Get("ETag"))
	}
}

func TestListPagesShowEveryOrderOnceTheNewestFirst(t *testing.T) {
	t.Parallel()
	s := start(t, newDB(t), nil)
	var adas, all []string
	for i := range 14 {
		user := []string{"ada", "ben"}[i%2]
		id := s.place(t, user)
		all = append([]string{id}, all...)
		if user == "ada" {
			adas = append([]string{id}, adas...)
		}
	}
	for _, tt := range []struct {
		name, key, query string
		want             []string
	}{
		{"a service sees all", serviceKey, "limit=4", all},
		{"a service asks for one user", serviceKey, "limit=3&user_id=ada", adas},
		{"a user sees the user's own", adaKey, "limit=2", adas},
		{"by status", serviceKey, "limit=5&status=pending", all},
		{"by another status", serviceKey, "limit=5&status=shipped", nil},
	} {
		var got []string
		for query := tt.query; ; {
			var page struct {
				Orders []struct{ ID string }
				Next   string `json:"next_cursor"`
			}
			s.do(t, call{method: "GET", path: "/v1/orders?" + query, key: tt.key}).decode(t, &page)
			for _, o := range page.Orders {
				got = append(got, o.ID)
			}
			if len(got) == 4 && tt.key == serviceKey {
				s.place(t, "cleo") // a new order must not move the pages
			}
			if page.Next == "" {
				break
			}
			query = tt.query + "&cursor=" + page.Next
		}
		if tt.name == "by status" {
			got = got[1:] // cleo's
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestAcceptedCancelsAlwaysWin(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	pool := db.RolePool("orders")
	for range 25 {
		id := s.place(t, "ada")
		var completed error
		var cancelled reply
		var race sync.WaitGroup
		race.Go(func() {
			completed = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				return order.SetStatus(t.Context(), tx, uuid.MustParse(id), order.Pending, order.Completed, "")
			})
		})
		race.Go(func() { cancelled = s.do(t, call{method: "POST", path: "/v1/orders/" + id + "/cancel"}) })
		race.Wait()
		if (cancelled.status == 202) != (completed != nil) || cancelled.status != 202 && cancelled.status != 409 {
			t.Fatalf("cancel = %d, complete = %v; want one of them to win", cancelled.status, completed)
		}
	}
}

func TestTimelineTellsWhatHappened(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	id := s.place(t, "ada")
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.payments (order_id, intent_id, idempotency_key, amount, currency, status)
		VALUES ($1, 'pi_1', 'k', 3780, 'EUR', 'charged')`, id); err != nil {
		t.Fatal(err)
	}
	setStatus(t, db, id, order.Pending, order.Completed)
	r := s.do(t, call{method: "GET", path: "/v1/orders/" + id + "/timeline", key: adaKey})
	var timeline struct {
		Status  string
		Entries []struct{ Source, What string }
	}
	r.decode(t, &timeline)
	var got []string
	for _, e := range timeline.Entries {
		got = append(got, e.Source+" "+e.What)
	}
	want := []string{"order placed", "payment intended", "payment charged", "order completed"}
	if diff := cmp.Diff(want, got); diff != "" || timeline.Status != "completed" {
		t.Errorf("timeline (-want +got):\n%s%s", diff, r.body)
	}
}

func TestTheDocumentDescribesEveryRoute(t *testing.T) {
	t.Parallel()
	s := start(t, newDB(t), nil)
	doc := s.document(t)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("openapi = %q, want 3.1", doc.OpenAPI)
	}
	for _, want := range []string{
		"post /v1/orders 201 409 422 503", "get /v1/orders 200 400", "get /v1/orders/{id} 200 304 404", "post /v1/orders/{id}/cancel 202 409",
		"post /v1/orders/{id}/refund 202 403 409",
		"get /v1/orders/{id}/timeline 200", "get /v1/orders/{id}/events 200 404", "get /v1/products 200", "get /v1/admin/overview 200 403",
	} {
		words := strings.Fields(want)
		op := doc.Paths[words[1]][words[0]]
		for _, status := range words[2:] {
			if op.Responses[status] == nil {
				t.Errorf("%s %s does not describe %s", words[0], words[1], status)
			}
		}
	}
	if doc.Paths["/v1/orders"]["post"].RequestBody == nil || doc.Paths["/v1/orders/{id}/cancel"]["post"].RequestBody != nil {
		t.Error("the body of POST /v1/orders is not described, or a cancel has one")
	}
	for _, of := range []string{"ErrorModel", "ErrorDetail"} {
		if doc.Components.Schemas[of] != nil {
			t.Errorf("the document describes %s, which nothing answers with", of)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if r := s.do(t, call{method: "GET", path: path, key: "-"}); r.status != 200 {
			t.Errorf("GET %s = %d %s", path, r.status, r.body)
		}
	}
}

// F4: the end of the api lets what has begun finish, and wakes those who wait.
func TestTheEndFinishesWhatHasBegun(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	f := &fixture{db: db, servers: map[string]*server{"plain": start(t, db, nil)}}
	s := f.servers["plain"]
	id := s.place(t, "ada")
	waited := make(chan reply, 1)
	go func() { waited <- s.do(t, get("/v1/orders/"+id+"?wait_for=terminal&timeout=60s")) }()
	finish := begin(t, f, "plain", "at-the-end", http.StatusCreated)
	s.stop()
	if r := <-waited; r.status != 200 || !strings.Contains(r.body, "pending") {
		t.Errorf("the request that waited = %d %s %v, want the order as it is", r.status, r.body, r.err)
	}
	finish() // checks that the order gets its 201
}

// F28: a Redis that comes and goes costs no correctness, and limits stay.
func TestRateLimitStaysWithoutRedis(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	redis := newRedis(t)
	s := start(t, db, func(c *api.Config) { c.RedisURL, c.RatePerSecond, c.RateBurst = "redis://"+redis.Addr(), 1, 5 })
	limited := func(key string) (ok, refused int) {
		for range 15 {
			switch r := s.do(t, call{method: "GET", path: "/v1/products", key: key}); r.status {
			case 200:
				ok++
			case 429:
				refused++
			default:
				t.Errorf("GET = %d %s", r.status, r.body)
			}
		}
		return ok, refused
	}
	// A busy machine may answer for Redis once, with a burst of the process's own.
	if ok, refused := limited(adaKey); ok < 5 || ok > 13 || refused == 0 {
		t.Errorf("with Redis %d passed and %d did not, want a burst of 5", ok, refused)
	}
	redis.Close()
	if ok, refused := limited(benKey); ok < 5 || ok > 10 || refused == 0 {
		t.Errorf("without Redis %d passed and %d did not, want a burst of 5", ok, refused)
	}
	s.place(t, "ada") // a service key is not limited
	metrics := s.do(t, call{method: "GET", path: "/metrics", key: "-"}).body
	scanner := bufio.NewScanner(strings.NewReader(metrics))
	for scanner.Scan() {
		var n float64
		if line := scanner.Text(); strings.HasPrefix(line, "orderflow_api_ratelimit_local") {
			if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &n); err != nil || n < 5 {
				t.Errorf("%s: want it to count the local decisions", line)
			}
			return
		}
	}
	t.Error("the metrics do not count local decisions")
}
