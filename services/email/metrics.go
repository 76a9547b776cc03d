package email

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// meters are the sender's measurements.
type meters struct {
	emails  metric.Int64Counter
	send    metric.Float64Histogram
	queued  metric.Int64Gauge
	inDoubt metric.Int64Gauge
	oldest  metric.Float64Gauge
}

func newMeters(meter metric.Meter) (m meters, err error) {
	if meter == nil {
		meter = noop.NewMeterProvider().Meter("email")
	}
	if m.emails, err = meter.Int64Counter("email.tries", metric.WithDescription(
		"What tries and questions about emails ended in: accepted, deferred, refused, unreachable, unknown, found, not_found, repeated, failed.")); err != nil {
		return m, err
	}
	if m.send, err = meter.Float64Histogram("email.send.duration", metric.WithUnit("s"),
		metric.WithDescription("Time the provider took for one mail.")); err != nil {
		return m, err
	}
	if m.queued, err = meter.Int64Gauge("email.backlog", metric.WithDescription("Emails that wait to be sent.")); err != nil {
		return m, err
	}
	if m.inDoubt, err = meter.Int64Gauge("email.in_doubt",
		metric.WithDescription("Emails of which nobody knows whether the provider has them.")); err != nil {
		return m, err
	}
	m.oldest, err = meter.Float64Gauge("email.oldest", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest email that is not sent yet."))
	return m, err
}

func (m meters) count(ctx context.Context, kind, result string) {
	m.emails.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", kind), attribute.String("result", result)))
}

func (m meters) took(ctx context.Context, provider string, d time.Duration) {
	m.send.Record(ctx, d.Seconds(), metric.WithAttributes(attribute.String("provider", provider)))
}

func (m meters) backlog(ctx context.Context, queued, inDoubt int64, oldest float64) {
	m.queued.Record(ctx, queued)
	m.inDoubt.Record(ctx, inDoubt)
	m.oldest.Record(ctx, oldest)
}
