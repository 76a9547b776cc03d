package httpserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/orderflow-dev/orderflow/internal/httpserver"
)

func ask(handler http.Handler, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return recorder
}

func TestReadyzNamesWhatIsNotReady(t *testing.T) {
	t.Parallel()
	var broken error
	ops := httpserver.NewOps(nil,
		httpserver.Check{Name: "postgres", Ready: func(context.Context) error { return broken }},
		httpserver.Check{Name: "kafka", Ready: func(context.Context) error { return nil }},
	)
	if got := ask(ops, "/readyz"); got.Code != http.StatusOK {
		t.Errorf("/readyz with all well = %d %s, want 200", got.Code, got.Body)
	}
	broken = errors.New("no answer")
	got := ask(ops, "/readyz")
	if want := `{"status":"not ready","checks":{"kafka":"ok","postgres":"no answer"}}`; got.Code != http.StatusServiceUnavailable || strings.TrimSpace(got.Body.String()) != want {
		t.Errorf("/readyz with a broken postgres = %d %s, want 503 %s", got.Code, got.Body, want)
	}
	if got := ask(ops, "/healthz"); got.Code != http.StatusOK {
		t.Errorf("/healthz with a broken postgres = %d, want 200: a restart would not mend it", got.Code)
	}
	broken = nil
	ops.Drain()
	if got := ask(ops, "/readyz"); got.Code != http.StatusServiceUnavailable {
		t.Errorf("/readyz after Drain = %d, want 503", got.Code)
	}
}

func TestReadyzGivesUpOnACheckThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ops := httpserver.NewOps(nil, httpserver.Check{Name: "kafka", Ready: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		if got := ask(ops, "/readyz"); got.Code != http.StatusServiceUnavailable {
			t.Errorf("/readyz with a check that hangs = %d, want 503", got.Code)
		}
	})
}

func TestAroundServesUntilTheWorkHasEnded(t *testing.T) {
	t.Parallel()
	ops := httpserver.NewOps(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	served := make(addresses, 1)
	ctx, cancel := context.WithCancel(t.Context())
	finish := make(chan struct{})
	ended := make(chan error, 1)
	failed := errors.New("work failed")
	go func() {
		ended <- ops.Around(ctx, slog.New(slog.NewJSONHandler(served, nil)), "127.0.0.1:0", func(ctx context.Context) error {
			<-ctx.Done()
			<-finish
			return failed
		})
	}()
	var addr string
	select {
	case addr = <-served:
	case err := <-ended:
		t.Fatalf("Around = %v, want it to serve", err)
	}
	waitFor(t, "it is ready", func() bool { code, _, _ := get(t, "http://"+addr+"/readyz"); return code == http.StatusOK })
	if code, _, err := get(t, "http://"+addr+"/metrics"); err != nil || code != http.StatusTeapot {
		t.Errorf("/metrics = %d, %v; want the handler's answer", code, err)
	}
	cancel()
	waitFor(t, "readiness is red while the work ends", func() bool {
		code, _, _ := get(t, "http://"+addr+"/readyz")
		return code == http.StatusServiceUnavailable
	})
	close(finish)
	if err := <-ended; !errors.Is(err, failed) {
		t.Errorf("Around = %v, want the work's error", err)
	}
	if _, _, err := get(t, "http://"+addr+"/readyz"); err == nil {
		t.Error("/readyz answers after the end")
	}
}

func TestAroundWithoutAnAddressOnlyWorks(t *testing.T) {
	t.Parallel()
	worked := false
	err := httpserver.NewOps(nil).Around(t.Context(), discard, "", func(context.Context) error { worked = true; return nil })
	if err != nil || !worked {
		t.Errorf("Around without an address = %v, worked %v; want nil, true", err, worked)
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	addr := taken.Addr().String()
	err = httpserver.NewOps(nil).Around(t.Context(), discard, addr, func(context.Context) error { return nil })
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "choose another") {
		t.Errorf("Around on a taken address = %v, want the address and what to do", err)
	}
}

// addresses takes a JSON log and passes on the addresses in it.
type addresses chan string

func (a addresses) Write(line []byte) (int, error) {
	var said struct{ Addr string }
	if err := json.Unmarshal(line, &said); err != nil {
		return 0, err
	}
	if said.Addr != "" {
		a <- said.Addr
	}
	return len(line), nil
}
