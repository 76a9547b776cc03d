package api_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/services/api"
)

// A client that sends requests and reads no answers gets its connection closed, instead of keeping it for ever.
func TestAClientThatNeverReadsIsCutOff(t *testing.T) {
	t.Parallel()
	s := start(t, newDB(t), func(c *api.Config) { c.WriteTimeout = 500 * time.Millisecond })
	for _, path := range []string{"/openapi.json", "/v1/products"} {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", path, serviceKey)
		// Sooner or later the answers fill what lies between, and the server waits for the client.
		if err := conn.SetWriteDeadline(time.Now().Add(3 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = conn.Write([]byte(request))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("GET %s without end: the server keeps the connection and waits", path)
		}
	}
}

// The time to read an answer begins when there is something to read.
func TestALongSilenceCutsNobodyOff(t *testing.T) {
	t.Parallel()
	const patience = 2 * time.Second
	db := newDB(t)
	s := start(t, db, func(c *api.Config) { c.WriteTimeout = patience })
	id := s.place(t, "ada")
	next := follow(t, s, id, "")
	if got := next(); got != "1 pending" {
		t.Fatalf("first event = %q", got)
	}
	wait := fmt.Sprintf("/v1/orders/%s?wait_for=terminal&timeout=%v", id, 2*patience)
	var polls sync.WaitGroup
	polls.Go(func() {
		if r := s.do(t, get(wait)); r.status != 200 {
			t.Errorf("a poll that waited for %v = %d %s %v", 2*patience, r.status, r.body, r.err)
		}
	})
	polls.Go(func() {
		r := s.do(t, call{method: "GET", path: wait, header: http.Header{"If-None-Match": {`"1"`}}})
		if r.status != http.StatusNotModified {
			t.Errorf("a poll that waited for %v and has no body = %d %s %v, want 304", 2*patience, r.status, r.body, r.err)
		}
	})
	polls.Wait()
	setStatus(t, db, id, order.Pending, order.Completed)
	if got := next(); got != "2 completed" {
		t.Errorf("the event after %v of silence = %q", 2*patience, got)
	}
}

// Whoever makes up keys uses up neither the slots nor the patience that the others need.
func TestUnknownKeysDoNotStandInTheWayOfOthers(t *testing.T) {
	t.Parallel()
	s := start(t, newDB(t), func(c *api.Config) { c.MaxInFlight, c.MaxConns = 4, 2 })
	s.place(t, "ada") // so that the key is known
	var flood sync.WaitGroup
	var n, refused, limited atomic.Int64
	end := make(chan struct{})
	for range 8 {
		flood.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				r := s.do(t, call{method: "GET", path: "/v1/products", key: fmt.Sprintf("made-up-key-number-%06d", n.Add(1))})
				switch r.status {
				case http.StatusUnauthorized:
					refused.Add(1)
				case http.StatusTooManyRequests:
					isProblem(t, r)
					limited.Add(1)
				case http.StatusServiceUnavailable: // there is room for one of them at once
				default:
					t.Errorf("a made-up key = %d %s %v", r.status, r.body, r.err)
				}
			}
		})
	}
	for range 200 {
		if r := s.do(t, get("/v1/products")); r.status != 200 {
			t.Errorf("a good key meanwhile = %d %s %v", r.status, r.body, r.err)
		}
	}
	eventually(t, "the address is told to wait", func() bool { return limited.Load() > 0 })
	close(end)
	flood.Wait()
	if refused.Load() == 0 {
		t.Error("none of the made-up keys was looked up")
	}
}

func TestOneKeyDoesNotTakeAllPlacesToWait(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	id, bens := s.place(t, "ada"), s.place(t, "ben")
	wait := func(key, id, timeout string) reply {
		return s.do(t, call{method: "GET", path: "/v1/orders/" + id + "?wait_for=terminal&timeout=" + timeout, key: key})
	}
	var all sync.WaitGroup
	var answered, turnedAway atomic.Int64
	for range 130 {
		all.Go(func() {
			switch r := wait(adaKey, id, "60s"); {
			case r.status == 200 && strings.Contains(r.body, `"completed"`):
				answered.Add(1)
			case r.status == http.StatusTooManyRequests && r.header.Get("Retry-After") != "":
				turnedAway.Add(1)
			default:
				t.Errorf("a poll = %d %s %v", r.status, r.body, r.err)
			}
		})
	}
	eventually(t, "30 of 130 polls with one key are turned away", func() bool { return turnedAway.Load() == 30 })
	if r := s.do(t, call{method: "GET", path: "/v1/orders/" + id + "/events", key: adaKey}); r.status != http.StatusTooManyRequests {
		t.Errorf("a stream with the same key = %d %s, want 429", r.status, r.body)
	}
	if r := s.do(t, call{method: "GET", path: "/v1/orders/" + id, key: adaKey}); r.status != 200 {
		t.Errorf("a request that does not wait = %d %s, want 200", r.status, r.body)
	}
	for _, key := range []string{benKey, serviceKey} {
		if r := wait(key, bens, "10ms"); r.status != 200 {
			t.Errorf("a poll with another key = %d %s, want 200", r.status, r.body)
		}
	}
	setStatus(t, db, id, order.Pending, order.Completed)
	all.Wait()
	if answered.Load() != 100 {
		t.Errorf("%d polls were answered, want 100", answered.Load())
	}
	if r := wait(adaKey, bens, "10ms"); r.status != 404 {
		t.Errorf("ben's order = %d", r.status)
	}
	if r := wait(adaKey, s.place(t, "ada"), "10ms"); r.status != 200 {
		t.Errorf("a poll after the others have left = %d %s, want 200", r.status, r.body)
	}
}
