// Package telemetry gives a service its logger, its metrics and the trace context of what it works on.
//
// Metrics are OpenTelemetry instruments, exposed for Prometheus from a registry that belongs to one service: several
// services in one process do not mix. Traces are not exported. Their context travels all the same, in the W3C traceparent
// header of requests and records, and its id is in the log lines, so that a tracing system in front of the api, or a search
// through the logs, finds a request and what handled its messages. It ends where a saga begins: package saga keeps no trace,
// so what an order's saga does and publishes is found by the order's id.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/orderflow-dev/orderflow"

// Telemetry is one service's instruments. Its owner calls [Telemetry.Close].
type Telemetry struct {
	// Meter makes instruments.
	Meter metric.Meter
	// Tracer starts spans. They are recorded nowhere; what counts is the context they carry on.
	Tracer trace.Tracer
	// Metrics serves what the instruments measure, in Prometheus' format.
	Metrics http.Handler

	meters *sdkmetric.MeterProvider
	traces *sdktrace.TracerProvider
}

// New returns the instruments of a service. It starts nothing.
func New(service string) (*Telemetry, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, fmt.Errorf("set up the Prometheus exporter: %w", err)
	}
	named := resource.NewSchemaless(attribute.String("service.name", service))
	t := &Telemetry{
		meters: sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter), sdkmetric.WithResource(named)),
		traces: sdktrace.NewTracerProvider(sdktrace.WithResource(named)),
		// One instrument that cannot be read must not hide the others.
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}),
	}
	t.Meter = t.meters.Meter(scope)
	t.Tracer = t.traces.Tracer(scope)
	return t, nil
}

// Close ends the instruments.
func (t *Telemetry) Close(ctx context.Context) error {
	if err := errors.Join(t.meters.Shutdown(ctx), t.traces.Shutdown(ctx)); err != nil {
		return fmt.Errorf("end the instruments: %w", err)
	}
	return nil
}

// Trace puts the trace context of each request into its context: the one in the traceparent header, else a new one.
func (t *Telemetry) Trace(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := t.Tracer.Start(ctx, "http request")
		defer span.End()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
