package api_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

// proxy stands between an api and Postgres and loses what it is told to lose.
type proxy struct {
	ln       net.Listener
	upstream string
	wg       sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]bool
	refusing bool
	onCommit fate
}

// fate is what becomes of the next COMMIT.
type fate int

const (
	passes         fate = iota
	losesRequest        // the connection is cut and Postgres never sees the COMMIT
	losesAnswer         // Postgres commits, and the connection is cut before the answer
	losesEverAfter      // like losesAnswer, and nobody can connect any more
)

func newProxy(t *testing.T, db *pgtest.DB) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, upstream: u.Host, conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		p.refuse()
		p.wg.Wait()
	})
	return p
}

// url leads through the proxy to db, as the api's role.
func (p *proxy) url(t *testing.T, db *pgtest.DB) string {
	t.Helper()
	u, err := url.Parse(db.RoleURL("orders"))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.ln.Addr().String()
	return u.String()
}

// refuse cuts every connection and takes no new ones.
func (p *proxy) refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}

// admit takes connections again.
func (p *proxy) admit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = false
}

// next decides on the next COMMIT.
func (p *proxy) next(f fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onCommit = f
}

func (p *proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.upstream)
		if err != nil || !p.track(client, server) {
			_ = client.Close()
			if err == nil {
				_ = server.Close()
			}
			continue
		}
		answers := make(chan bool, 1) // holds a note to lose the next answer
		p.wg.Go(func() { p.requests(client, server, answers) })
		p.wg.Go(func() { p.answers(client, server, answers) })
	}
}

func (p *proxy) track(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusing {
		return false
	}
	for _, conn := range conns {
		p.conns[conn] = true
	}
	return true
}

func (p *proxy) requests(client, server net.Conn, lose chan<- bool) {
	defer client.Close()
	defer server.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if bytes.Contains(buf[:n], []byte("commit\x00")) {
			p.mu.Lock()
			fate := p.onCommit
			p.onCommit = passes
			p.mu.Unlock()
			switch fate {
			case losesRequest:
				return
			case losesAnswer, losesEverAfter:
				lose <- fate == losesEverAfter
			case passes:
			}
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) answers(client, server net.Conn, lose <-chan bool) {
	defer client.Close()
	defer server.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		select {
		case forGood := <-lose:
			if forGood {
				p.refuse()
			}
			return
		default:
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

func tracedRequest(t *testing.T, target string, reused *bool) *http.Request {
	t.Helper()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { *reused = info.Reused },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func setStatus(t *testing.T, db *pgtest.DB, id string, from, to order.Status) {
	t.Helper()
	pool := db.RolePool("orders")
	defer pool.Close()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return order.SetStatus(t.Context(), tx, uuid.MustParse(id), from, to, "")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// waiting reports whether an order waits for its user's lock.
func waiting(t *testing.T, db *pgtest.DB) bool {
	t.Helper()
	return count(t, db, `
		SELECT count(*)
		FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%user_sequences%'`) > 0
}

// hangUp sends a request and closes the connection without reading the answer, when then has returned.
func hangUp(t *testing.T, s *server, c call, then func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	req, err := http.NewRequestWithContext(ctx, c.method, s.url+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+serviceKey)
	req.Header.Set("Idempotency-Key", c.idempotency)
	req.Header.Set("Content-Type", "application/json")
	go func() {
		resp, err := s.client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		done <- err
	}()
	then()
	cancel()
	if err := <-done; err == nil {
		t.Error("the request was answered before the client hung up")
	}
}

func newRedis(t *testing.T) *miniredis.Miniredis {
	t.Helper()
	return miniredis.RunT(t)
}
