package httpserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/httpserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// running is a server under test.
type running struct {
	url   string
	addr  string
	ln    net.Listener
	end   context.CancelFunc
	ended chan struct{}
	err   error // valid once ended is closed
}

func run(t *testing.T, handler http.Handler, opts httpserver.Options) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := httpserver.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &running{url: "http://" + ln.Addr().String(), addr: ln.Addr().String(), ln: ln, end: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = httpserver.Run(ctx, discard, ln, handler, opts)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-r.ended:
		return r.err
	case <-time.After(20 * time.Second):
		t.Fatal("the server did not end")
		return nil
	}
}

// get makes a request on a connection of its own.
func get(t *testing.T, url string) (int, string, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// F4: readiness turns red first, then what was accepted is finished.
func TestRunFinishesAcceptedRequests(t *testing.T) {
	t.Parallel()
	ops := httpserver.NewOps(nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("/readyz", ops)
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		// That something does not happen shows only in time: a cut connection ends the context within microseconds.
		select {
		case <-r.Context().Done():
			t.Errorf("context of an accepted request during the end = %v, want it alive", r.Context().Err())
		case <-time.After(50 * time.Millisecond):
		}
		fmt.Fprint(w, "done")
	})
	server := run(t, mux, httpserver.Options{Ops: ops})
	if code, _, err := get(t, server.url+"/readyz"); err != nil || code != http.StatusOK {
		t.Fatalf("/readyz before the end = %d, %v; want 200", code, err)
	}
	answered := make(chan string, 1)
	go func() {
		_, body, err := get(t, server.url+"/slow")
		answered <- fmt.Sprint(body, err)
	}()
	<-entered
	server.end()
	waitFor(t, "new connections are refused", func() bool {
		conn, err := net.Dial("tcp", server.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	close(leave)
	if got := <-answered; got != "done<nil>" {
		t.Errorf("answer to a request that was under way = %q, want done", got)
	}
	if err := server.wait(t); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func TestRunStaysReachableWhileLoadBalancersFindOut(t *testing.T) {
	t.Parallel()
	ops := httpserver.NewOps(nil)
	server := run(t, ops, httpserver.Options{Ops: ops, DrainDelay: time.Hour})
	waitFor(t, "it serves", func() bool { code, _, _ := get(t, server.url+"/readyz"); return code == http.StatusOK })
	server.end()
	waitFor(t, "readiness is red", func() bool { code, _, _ := get(t, server.url+"/readyz"); return code == http.StatusServiceUnavailable })
	// A server that ends by itself has nothing left to be reached for: the delay is over.
	_ = server.ln.Close()
	if err := server.wait(t); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run whose listener was closed = %v, want %v", err, net.ErrClosed)
	}
}

func TestRunCutsOffWhatDoesNotFinish(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	defer close(leave)
	server := run(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-leave
	}), httpserver.Options{DrainTimeout: 50 * time.Millisecond})
	failed := make(chan error, 1)
	go func() {
		_, _, err := get(t, server.url)
		failed <- err
	}()
	<-entered
	server.end()
	if err := server.wait(t); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("Run with a request that hangs = %v, want a deadline that says so", err)
	}
	if err := <-failed; err == nil {
		t.Error("the request that hangs got an answer, want it cut off")
	}
}

func TestDrainingEndsALongPollEarly(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	server := run(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-httpserver.Draining(r.Context())
		fmt.Fprint(w, "as far as I know")
	}), httpserver.Options{})
	answered := make(chan string, 1)
	go func() {
		_, body, err := get(t, server.url)
		answered <- fmt.Sprint(body, err)
	}()
	<-entered
	server.end()
	if got := <-answered; got != "as far as I know<nil>" {
		t.Errorf("long poll at the end = %q, want its answer", got)
	}
	if err := server.wait(t); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func TestRunLimitsWhatAClientMaySend(t *testing.T) {
	t.Parallel()
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	tests := []struct {
		name string
		opts httpserver.Options
		send string
		want string
	}{
		{"a header that never ends is cut off", httpserver.Options{ReadHeaderTimeout: 50 * time.Millisecond}, "GET / HTTP/1.1\r\nHost: x\r\n", ""},
		{
			"a header that is too large is refused", httpserver.Options{MaxHeaderBytes: 1 << 10, ReadHeaderTimeout: time.Minute},
			"GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 10<<10) + "\r\n\r\n", "431",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", run(t, ok, tt.opts).addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := io.WriteString(conn, tt.send); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil && len(got) == 0 && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("read: %v, want the connection closed", err)
			}
			if !bytes.Contains(got, []byte(tt.want)) {
				t.Errorf("answer = %q, want %q in it", got, tt.want)
			}
		})
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(2 * time.Millisecond); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s until %s", what)
		}
	}
}
