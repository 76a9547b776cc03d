package api

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics counts what an operator, and the checker after a run with faults, wants to see happen.
type metrics struct {
	duration metric.Float64Histogram
	placed   metric.Int64Counter
	replayed metric.Int64Counter
	unknown  metric.Int64Counter
	local    metric.Int64Counter
	reports  metric.Int64Counter
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{}
	var err error
	m.duration, err = meter.Float64Histogram("orderflow.api.request.duration",
		metric.WithDescription("Time to answer a request, by route and status."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10))
	if err != nil {
		return nil, fmt.Errorf("make metric: %w", err)
	}
	for _, c := range []struct {
		counter    *metric.Int64Counter
		name, help string
	}{
		{&m.placed, "orderflow.api.orders.placed", "Orders accepted."},
		{&m.replayed, "orderflow.api.idempotent.replays", "Requests answered with the stored answer of an earlier one."},
		{&m.unknown, "orderflow.api.commits.unknown", "Commits whose outcome was unknown, by how it was resolved."},
		{&m.local, "orderflow.api.ratelimit.local", "Requests whose rate limit was decided without Redis."},
		{&m.reports, "orderflow.api.payment.reports", "Reports of the payment provider, by what became of them."},
	} {
		*c.counter, err = meter.Int64Counter(c.name, metric.WithDescription(c.help))
		if err != nil {
			return nil, fmt.Errorf("make metric: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) request(ctx context.Context, route string, status int, took time.Duration) {
	if route == "" {
		route = "none" // the path itself would be a label without end
	}
	m.duration.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("route", route), attribute.Int("status", status)))
}

func (m *metrics) report(ctx context.Context, outcome string) {
	m.reports.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}

func (m *metrics) resolved(ctx context.Context, outcome string) {
	m.unknown.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}
