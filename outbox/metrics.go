package outbox

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are what a relay measures, each with the attributes relay and schema:
//
//	outbox.latency             from the write of a message to the broker's ack, seconds
//	outbox.poll.duration       one poll, seconds
//	outbox.oldest_unpublished  age of the oldest message that waits, seconds
//	outbox.backlog             messages that wait, counted up to [BacklogLimit]
//	outbox.parked_keys         keys that are parked
//	outbox.epoch               epoch under which this process leads; 0 while it does not
//	outbox.oldest_transaction  age of the oldest transaction open in the database, seconds
//	outbox.oldest_transaction.pid  the process that has it open, for pg_terminate_backend; 0 if there is none
//	outbox.keys_parked, outbox.fenced_writes, outbox.order_violations, outbox.restarts, outbox.rebases,
//	outbox.leaves_truncated    how often that happened
type metrics struct {
	attrs                                                           metric.MeasurementOption
	latency, poll                                                   metric.Float64Histogram
	keysParked, fencedWrites, violations, restarts, rebases, leaves metric.Int64Counter
	epoch                                                           *atomic.Int64
	observed                                                        metric.Registration
}

func newMetrics(r *Relay) (metrics, error) {
	m := metrics{
		attrs: metric.WithAttributeSet(attribute.NewSet(
			attribute.String("relay", r.opts.Name), attribute.String("schema", r.opts.Schema))),
		epoch: &atomic.Int64{},
	}
	meter := r.opts.Meter
	var err error
	buckets := metric.WithExplicitBucketBoundaries(
		.0005, .001, .002, .003, .005, .0075, .01, .015, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300)
	histogram := func(name, description string) (h metric.Float64Histogram) {
		if err == nil {
			h, err = meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description), buckets)
		}
		return h
	}
	counter := func(name, description string) (c metric.Int64Counter) {
		if err == nil {
			c, err = meter.Int64Counter(name, metric.WithDescription(description))
		}
		return c
	}
	m.latency = histogram("outbox.latency", "Time from the write of a message to the broker's ack.")
	m.poll = histogram("outbox.poll.duration", "Time of one poll.")
	m.keysParked = counter("outbox.keys_parked", "Keys parked because the broker refused a message for good.")
	m.fencedWrites = counter("outbox.fenced_writes", "Writes refused because another relay leads.")
	m.violations = counter("outbox.order_violations", "Messages published behind a later one of their key.")
	m.restarts = counter("outbox.restarts", "Times the relay dropped its memory and started again from its cursor.")
	m.rebases = counter("outbox.rebases", "Times the outbox was fitted to another server after a restore.")
	m.leaves = counter("outbox.leaves_truncated", "Leaves of the ring given back.")
	if err != nil {
		return metrics{}, err
	}
	m.observed, err = r.observe(meter, m)
	return m, err
}

// observe registers the gauges. They show what the relay saw last, and cost no query.
func (r *Relay) observe(meter metric.Meter, m metrics) (metric.Registration, error) {
	var err error
	gauge := func(name, unit, description string) (g metric.Float64ObservableGauge) {
		if err == nil {
			g, err = meter.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		}
		return g
	}
	oldest := gauge("outbox.oldest_unpublished", "s", "Age of the oldest message that waits.")
	backlog := gauge("outbox.backlog", "{message}", "Messages that wait, counted up to 100,000.")
	parked := gauge("outbox.parked_keys", "{key}", "Keys that are parked.")
	transaction := gauge("outbox.oldest_transaction", "s", "Age of the oldest transaction open in the database.")
	pid := gauge("outbox.oldest_transaction.pid", "{pid}", "Postgres process of the oldest open transaction; 0 if there is none.")
	epoch := gauge("outbox.epoch", "{epoch}", "Epoch under which this process leads; 0 while it does not.")
	if err != nil {
		return nil, err
	}
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveFloat64(epoch, float64(m.epoch.Load()), m.attrs)
		if seen := r.seen.Load(); seen != nil {
			o.ObserveFloat64(oldest, seen.relay.Oldest.Seconds(), m.attrs)
			o.ObserveFloat64(backlog, float64(seen.relay.Backlog), m.attrs)
			o.ObserveFloat64(parked, float64(seen.relay.ParkedKeys), m.attrs)
			o.ObserveFloat64(transaction, seen.transaction.Age.Seconds(), m.attrs)
			o.ObserveFloat64(pid, float64(seen.transaction.PID), m.attrs)
		}
		return nil
	}, oldest, backlog, parked, transaction, pid, epoch)
}

func (m *metrics) unregister() {
	// It only fails for a registration of another meter.
	_ = m.observed.Unregister()
}

func (m *metrics) acked(ctx context.Context, latency time.Duration) {
	m.latency.Record(ctx, latency.Seconds(), m.attrs)
}

func (m *metrics) polled(ctx context.Context, d time.Duration) {
	m.poll.Record(ctx, d.Seconds(), m.attrs)
}
func (m *metrics) leads(epoch int64)             { m.epoch.Store(epoch) }
func (m *metrics) parked(ctx context.Context)    { m.keysParked.Add(ctx, 1, m.attrs) }
func (m *metrics) fenced(ctx context.Context)    { m.fencedWrites.Add(ctx, 1, m.attrs) }
func (m *metrics) violation(ctx context.Context) { m.violations.Add(ctx, 1, m.attrs) }
func (m *metrics) restarted(ctx context.Context) { m.restarts.Add(ctx, 1, m.attrs) }
func (m *metrics) rebased(ctx context.Context)   { m.rebases.Add(ctx, 1, m.attrs) }
func (m *metrics) truncated(ctx context.Context) { m.leaves.Add(ctx, 1, m.attrs) }
