package httpserver

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Check is one condition of being ready.
type Check struct {
	// Name says what is checked, for example "postgres".
	Name string
	// Ready returns nil, or why the service cannot work. It must be quick: its context ends after 2 s.
	Ready func(ctx context.Context) error
}

// Ops answers what operators and orchestrators ask a process:
//
//	GET /healthz  200 while the process runs. Red would have it restarted, which cures no outage of something else.
//	GET /readyz   200 when every check is, 503 with the names of those that are not, and from the beginning of the end.
//	GET /metrics  what the service measures, for Prometheus.
type Ops struct {
	mux      *http.ServeMux
	checks   []Check
	draining atomic.Bool
}

// NewOps returns the endpoints. metrics may be nil.
func NewOps(metrics http.Handler, checks ...Check) *Ops {
	o := &Ops{mux: http.NewServeMux(), checks: checks}
	o.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, status{Status: "ok"})
	})
	o.mux.HandleFunc("GET /readyz", o.readyz)
	if metrics != nil {
		o.mux.Handle("GET /metrics", metrics)
	}
	return o
}

// ServeHTTP answers one request.
func (o *Ops) ServeHTTP(w http.ResponseWriter, r *http.Request) { o.mux.ServeHTTP(w, r) }

// Drain turns readiness red for good.
func (o *Ops) Drain() { o.draining.Store(true) }

// Around runs work with the endpoints served on addr, and only work when addr is empty. With port 0 they take a free one; the
// log says which. When ctx ends readiness turns red, while the endpoints go on answering until work has returned. It returns
// work's error, or why the endpoints could not be served: then work is ended too.
func (o *Ops) Around(ctx context.Context, log *slog.Logger, addr string, work func(context.Context) error) error {
	stop := context.AfterFunc(ctx, o.Drain)
	defer stop()
	if addr == "" {
		return work(ctx)
	}
	ln, err := Listen(ctx, addr)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "serving health and metrics", slog.String("addr", ln.Addr().String()))
	working, endWork := context.WithCancel(ctx)
	defer endWork()
	serving, endServing := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() {
		// A scrape that hangs must not hold up the end of the process.
		served <- Run(serving, log, ln, o, Options{DrainTimeout: time.Second})
		endWork()
	}()
	err = work(working)
	endServing()
	return errors.Join(err, <-served)
}

type status struct {
	Status string            `json:"status"`
	Checks map[string]string `json:"checks,omitempty"`
}

func (o *Ops) readyz(w http.ResponseWriter, r *http.Request) {
	if o.draining.Load() {
		answer(w, http.StatusServiceUnavailable, status{Status: "draining"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	results := make([]error, len(o.checks))
	var all sync.WaitGroup
	for i, check := range o.checks {
		all.Go(func() { results[i] = check.Ready(ctx) })
	}
	all.Wait()
	s, code := status{Status: "ready", Checks: map[string]string{}}, http.StatusOK
	for i, check := range o.checks {
		s.Checks[check.Name] = "ok"
		if err := results[i]; err != nil {
			s.Status, code = "not ready", http.StatusServiceUnavailable
			s.Checks[check.Name] = err.Error()
		}
	}
	answer(w, code, s)
}

func answer(w http.ResponseWriter, code int, s status) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(s) // the client is gone: nobody to tell
}
