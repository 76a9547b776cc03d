package api

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"

	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/internal/ratelimit"
)

// api is what the handlers share.
type api struct {
	pool        *pgxpool.Pool
	slots       slots
	keeper      *keeper
	watch       *watch
	cursors     cursors
	prepass     *prepass
	metrics     *metrics
	webhooks    payment.Webhooks // nil: none are taken
	log         *slog.Logger
	afterCommit func()
}

// parts are what an api is made of.
type parts struct {
	pool         *pgxpool.Pool
	limits       *ratelimit.Limiter
	log          *slog.Logger
	meter        metric.Meter
	maxInFlight  int
	bodyTimeout  time.Duration
	writeTimeout time.Duration
	afterCommit  func()
	webhooks     payment.Webhooks // nil: none are taken
	exampleKey   string           // of the documentation; "" for none
	ops          http.Handler     // serves /healthz, /readyz and /metrics
}

// build returns the api and the handler of all its routes. Its watch runs in the caller's hands.
func build(ctx context.Context, p parts) (*api, http.Handler, error) {
	cursors, err := newCursors(ctx, p.pool)
	if err != nil {
		return nil, nil, err
	}
	m, err := newMetrics(p.meter)
	if err != nil {
		return nil, nil, err
	}
	free := newSlots(p.maxInFlight)
	mux := http.NewServeMux()
	a := &api{
		pool: p.pool, slots: free, cursors: cursors, metrics: m, webhooks: p.webhooks, log: p.log, afterCommit: p.afterCommit,
		keeper: newKeeper(p.pool, free, p.log, m),
		watch:  newWatch(p.pool, p.log),
		prepass: &prepass{
			mux: mux, routes: map[string]route{}, keys: newKeyring(p.pool, free), limits: p.limits,
			log: p.log, metrics: m, bodyTimeout: p.bodyTimeout, writeTimeout: p.writeTimeout,
		},
	}
	document, err := a.routes(mux)
	if err != nil {
		return nil, nil, err
	}
	if a.webhooks != nil {
		a.prepass.routes[webhookPattern] = route{access: signed}
		mux.HandleFunc(webhookPattern, a.serveWebhook)
	}
	docs, err := docsHandler(document, p.exampleKey)
	if err != nil {
		return nil, nil, err
	}
	mux.HandleFunc("GET /docs", docs)
	mux.HandleFunc("GET /openapi.json", documentHandler(document))
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		mux.Handle("GET "+path, p.ops)
	}
	return a, a.prepass, nil
}
