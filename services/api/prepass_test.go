package api

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
)

// An answer of which a part was sent cannot become a 500 any more, and must not look complete either.
func TestAnAnswerCutByAPanicDoesNotEndAsIfItWereComplete(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(noop.NewMeterProvider().Meter("api"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for path, with := range map[string]any{"/bug": "boom", "/abort": http.ErrAbortHandler} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half of ")
			_ = http.NewResponseController(w).Flush()
			panic(with)
		})
	}
	mux.HandleFunc("GET /at-once", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	p := &prepass{mux: mux, routes: map[string]route{}, log: slog.New(slog.DiscardHandler), metrics: m, writeTimeout: time.Minute}
	server := httptest.NewServer(p)
	defer server.Close()
	for _, path := range []string{"/bug", "/abort"} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "half of " {
			t.Errorf("GET %s: read %q, %v; want the half and then an unexpected EOF", path, got, err)
		}
	}
	if resp, err := server.Client().Get(server.URL + "/at-once"); !errors.Is(err, io.EOF) {
		if err == nil {
			_ = resp.Body.Close()
		}
		t.Errorf("GET /at-once = %v, want no answer at all", err)
	}
}
