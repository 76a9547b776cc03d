package api_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/services/api"
)

// oneOrder checks that a key made one order with one message, and that it is the order of the answer.
func oneOrder(t *testing.T, db *pgtest.DB, userID, key, id string) {
	t.Helper()
	for what, sql := range map[string]string{
		"orders":   `SELECT count(*) FROM orders.orders WHERE user_id = $1`,
		"history":  `SELECT count(*) FROM orders.order_history JOIN orders.orders o ON o.id = order_id WHERE user_id = $1`,
		"messages": `SELECT count(*) FROM orders.outbox WHERE key = $1 AND type = 'order.placed.v1'`,
		"sequence": `SELECT coalesce(max(last_seq), 0) FROM orders.user_sequences WHERE user_id = $1`,
	} {
		if n := count(t, db, sql, userID); n != 1 {
			t.Errorf("%s of %s: %d, want 1", what, userID, n)
		}
	}
	if n := count(t, db, `
		SELECT count(*)
		FROM orders.idempotency_keys k
		JOIN orders.orders o ON o.user_id = k.user_id AND k.location = '/v1/orders/' || o.id
		JOIN orders.outbox m ON m.headers ->> 'ce_subject' = o.id::text
		WHERE k.user_id = $1 AND k.key = $2 AND o.id = $3`, userID, key, id); n != 1 {
		t.Errorf("key, order %s and message belong together %d times, want once", id, n)
	}
}

// F3: 100 parallel POSTs with one key on two api processes.
func TestParallelRequestsWithOneKeyMakeOneOrder(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	servers := []*server{start(t, db, nil), start(t, db, nil)}
	const key = "one-key-for-all"
	replies := make([]reply, 100)
	var all sync.WaitGroup
	for i := range replies {
		all.Go(func() {
			replies[i] = servers[i%2].do(t, call{method: "POST", path: "/v1/orders", idempotency: key, body: orderBody("ada")})
		})
	}
	all.Wait()
	ids, fresh := map[string]bool{}, 0
	for _, r := range replies {
		switch {
		case r.status == http.StatusCreated:
			ids[r.id(t)] = true
			if r.header.Get("Idempotent-Replayed") == "" {
				fresh++
			}
		case r.status == http.StatusConflict && r.header.Get("Retry-After") != "":
		default:
			t.Errorf("one of the requests = %d %s %v, want 201 or 409 with Retry-After", r.status, r.body, r.err)
		}
	}
	if len(ids) != 1 || fresh != 1 {
		t.Fatalf("the 201s name %d orders, %d of them as new; want one", len(ids), fresh)
	}
	for id := range ids {
		oneOrder(t, db, "ada", key, id)
	}
}

// A request that another process works on is told so without waiting for it.
func TestAKeyAtWorkInAnotherProcessIsA409AtOnce(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	f := &fixture{db: db, servers: map[string]*server{"plain": start(t, db, nil)}}
	other := start(t, db, func(c *api.Config) { c.MaxConns = 1 })
	finish := begin(t, f, "plain", "slow-one", http.StatusCreated)
	defer finish() // nothing ends the other transaction before
	for range 3 {
		r := other.do(t, call{method: "POST", path: "/v1/orders", idempotency: "slow-one", body: orderBody("slow")})
		if r.status != http.StatusConflict {
			t.Fatalf("the same key elsewhere = %d %s, want 409 while the order is at work", r.status, r.body)
		}
	}
	other.place(t, "ben") // the only connection is free
}

// F1, F2: COMMIT is cut off before or after Postgres has seen it.
func TestALostCommitIsResolvedUnderItsKey(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		fate fate
	}{
		{"the COMMIT never reached Postgres", losesRequest},
		{"the answer to the COMMIT was lost", losesAnswer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			gate := newProxy(t, db)
			s := start(t, db, func(c *api.Config) { c.DatabaseURL = gate.url(t, db) })
			gate.next(tt.fate)
			post := call{method: "POST", path: "/v1/orders", idempotency: "lost", body: orderBody("ada")}
			first := s.do(t, post)
			if first.status != http.StatusCreated || first.header.Get("Idempotent-Replayed") != "" {
				t.Fatalf("POST with a lost commit = %d %s %v, want a new 201", first.status, first.body, first.err)
			}
			oneOrder(t, db, "ada", "lost", first.id(t))
			if again := s.do(t, post); again.status != http.StatusCreated || again.body != first.body || again.header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("the same request again = %d %s, want the same 201 replayed", again.status, again.body)
			}
		})
	}
}

func TestAnOutcomeThatStaysUnknownIsSaidAndFoundLater(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	gate := newProxy(t, db)
	s := start(t, db, func(c *api.Config) { c.DatabaseURL = gate.url(t, db) })
	gate.next(losesEverAfter)
	post := call{method: "POST", path: "/v1/orders", idempotency: "lost", body: orderBody("ada")}
	r := s.do(t, post)
	var p struct{ Type string }
	r.decode(t, &p)
	if r.status != http.StatusServiceUnavailable || p.Type != "urn:orderflow:problem:outcome-unknown" {
		t.Fatalf("POST = %d %s, want 503 outcome-unknown", r.status, r.body)
	}
	isProblem(t, r)
	gate.admit()
	var again reply
	eventually(t, "the api has its database back", func() bool {
		again = s.do(t, post)
		return again.status == http.StatusCreated
	})
	if again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the retry made a new order; the first one had committed")
	}
	oneOrder(t, db, "ada", "lost", again.id(t))
}

// The client's half of F2: it is gone before the answer, and comes back.
func TestAClientThatHangsUpFindsItsOrderAgain(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	f := &fixture{db: db, servers: map[string]*server{"plain": start(t, db, nil)}}
	s := f.servers["plain"]
	release := hold(t, db, "slow")
	hangUp(t, s, call{method: "POST", path: "/v1/orders", idempotency: "hung-up", body: orderBody("slow")}, func() {
		eventually(t, "the order waits for the lock", func() bool { return waiting(t, db) })
	})
	release()
	var r reply
	eventually(t, "the order is there", func() bool {
		r = s.do(t, call{method: "POST", path: "/v1/orders", idempotency: "hung-up", body: orderBody("slow")})
		return r.status == http.StatusCreated
	})
	oneOrder(t, db, "slow", "hung-up", r.id(t))
	if r.header.Get("Idempotent-Replayed") != "true" {
		t.Error("the order was placed by the retry; want the request that lost its client to finish")
	}
}

func TestARefusedRequestLeavesItsKeyFree(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	bad := edited("items", `[{"sku":"sku-none","quantity":1}]`)
	if r := s.do(t, call{method: "POST", path: "/v1/orders", idempotency: "k", body: bad}); r.status != 422 {
		t.Fatalf("POST = %d %s, want 422", r.status, r.body)
	}
	r := s.do(t, call{method: "POST", path: "/v1/orders", idempotency: "k", body: orderBody("ada")})
	if r.status != http.StatusCreated || r.header.Get("Idempotent-Replayed") != "" {
		t.Fatalf("the corrected request = %d %s, want a new 201", r.status, r.body)
	}
	oneOrder(t, db, "ada", "k", r.id(t))
}

func TestAReplayDoesNotCareWhatHappenedSince(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	post := call{method: "POST", path: "/v1/orders", idempotency: "k", body: orderBody("ada")}
	first := s.do(t, post)
	if _, err := db.Pool.Exec(t.Context(), `UPDATE orders.products SET unit_price = 1, currency = 'USD' WHERE sku = 'sku-mug'`); err != nil {
		t.Fatal(err)
	}
	if again := s.do(t, post); again.status != http.StatusCreated || again.body != first.body {
		t.Errorf("replay = %d %s, want %s", again.status, again.body, first.body)
	}
}

func TestKeysAreForgottenAfterTheirTime(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.idempotency_keys (user_id, operation, key, request_hash, status, body, created_at)
		SELECT 'ada', 'create-order', 'key-' || n, sha256(''), 201, '', now() - n * interval '1 hour'
		FROM generate_series(1, 2400) AS n`); err != nil {
		t.Fatal(err)
	}
	start(t, db, nil)
	eventually(t, "keys of more than 7 days are gone and the others are there", func() bool {
		return count(t, db, `SELECT count(*) FROM orders.idempotency_keys`) == 7*24-1
	})
}

func TestAfterCommitIsCalledForNewMessagesOnly(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	kicks := make(chan bool, 10)
	s := start(t, db, func(c *api.Config) { c.AfterCommit = func() { kicks <- true } })
	post := call{method: "POST", path: "/v1/orders", idempotency: uuid.NewString(), body: orderBody("ada")}
	id := s.do(t, post).id(t)
	s.do(t, post)
	cancel := call{method: "POST", path: "/v1/orders/" + id + "/cancel"}
	s.do(t, cancel)
	s.do(t, cancel)
	s.do(t, call{method: "POST", path: "/v1/orders", idempotency: uuid.NewString(), body: "{}"})
	if len(kicks) != 2 {
		t.Errorf("AfterCommit was called %d times for one order and one cancel, want 2", len(kicks))
	}
}

// F5: a spike is turned away before it reaches the pool, what was accepted is there, and afterwards all is as before.
func TestASpikeIsShedAndNothingAcceptedIsLost(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, func(c *api.Config) { c.MaxConns, c.MaxInFlight = 2, 8 })
	s.place(t, "ada") // so that the key is known
	release := hold(t, db, "slow")
	var all sync.WaitGroup
	var accepted, shed atomic.Int64
	for range 200 {
		all.Go(func() {
			r := s.do(t, call{method: "POST", path: "/v1/orders", idempotency: uuid.NewString(), body: orderBody("slow")})
			switch {
			case r.status == http.StatusCreated:
				accepted.Add(1)
			case r.status == http.StatusServiceUnavailable && r.header.Get("Retry-After") != "":
				if shed.Add(1) == 150 {
					release() // not before most of them were answered, at once
				}
			default:
				t.Errorf("POST = %d %s %v, want 201 or 503 with Retry-After", r.status, r.body, r.err)
			}
		})
	}
	all.Wait()
	if n := count(t, db, `SELECT count(*) FROM orders.orders WHERE user_id = 'slow'`); int64(n) != accepted.Load() || n == 0 {
		t.Errorf("%d orders for %d accepted requests", n, accepted.Load())
	}
	s.place(t, "slow")
}
