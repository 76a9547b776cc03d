package inbox

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// meters are the consumer's measurements. Fates: done, duplicate, ignored, waiting, held, dead, discarded, replayed.
type meters struct {
	group    attribute.KeyValue
	messages metric.Int64Counter
	reruns   metric.Int64Counter
	refused  metric.Int64Counter
	lost     metric.Int64Counter
	batches  metric.Float64Histogram
}

func newMeters(group string, meter metric.Meter) (meters, error) {
	if meter == nil {
		meter = noop.NewMeterProvider().Meter("inbox")
	}
	m := meters{group: attribute.String("group", group)}
	var err error
	if m.messages, err = meter.Int64Counter("inbox.messages",
		metric.WithDescription("Messages by what became of them.")); err != nil {
		return m, err
	}
	if m.reruns, err = meter.Int64Counter("inbox.batch.reruns",
		metric.WithDescription("Batches run again after a serialization failure or a deadlock.")); err != nil {
		return m, err
	}
	if m.refused, err = meter.Int64Counter("inbox.holds.refused",
		metric.WithDescription("Keys that found no room for a message among the held ones, counted at each try.")); err != nil {
		return m, err
	}
	if m.lost, err = meter.Int64Counter("inbox.offsets.lost",
		metric.WithDescription("Offsets that Kafka cut off the end of a log, or removed from its start before they were read.")); err != nil {
		return m, err
	}
	m.batches, err = meter.Float64Histogram("inbox.batch.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from taking a batch to its commit."))
	return m, err
}

func (m meters) count(ctx context.Context, topic, fate string, n int) {
	if n > 0 {
		m.messages.Add(ctx, int64(n), metric.WithAttributes(m.group, attribute.String("topic", topic), attribute.String("fate", fate)))
	}
}

func (m meters) batch(ctx context.Context, topic string, took time.Duration) {
	m.batches.Record(ctx, took.Seconds(), metric.WithAttributes(m.group, attribute.String("topic", topic)))
}

func (m meters) rerun(ctx context.Context, topic string) {
	m.reruns.Add(ctx, 1, metric.WithAttributes(m.group, attribute.String("topic", topic)))
}

func (m meters) noRoom(ctx context.Context, topic string, keys int) {
	m.refused.Add(ctx, int64(keys), metric.WithAttributes(m.group, attribute.String("topic", topic)))
}

func (m meters) offsetsLost(ctx context.Context, topic, cause string, n int64) {
	m.lost.Add(ctx, n, metric.WithAttributes(m.group, attribute.String("topic", topic), attribute.String("cause", cause)))
}
