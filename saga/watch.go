package saga

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// watch counts what is live until ctx ends, and shows it in gauges: what could not be counted is not shown.
func (e *Engine) watch(ctx context.Context) {
	const every = 5 * time.Second
	var seen atomic.Pointer[Status]
	shown, err := observe(e.opts.Meter, &seen)
	if err != nil {
		e.log.ErrorContext(ctx, "no gauges of sagas by state", "error", err)
		return
	}
	defer func() { _ = shown.Unregister() }()
	for ctx.Err() == nil {
		now, err := Inspect(ctx, e.pool)
		if err == nil {
			seen.Store(&now)
		} else if ctx.Err() == nil {
			seen.Store(nil)
			e.log.WarnContext(ctx, "live sagas not counted, will retry", "error", err)
		}
		wait(ctx, every)
	}
}

// observe registers the gauges. All engines of a database show the same figures: take the highest, not the sum.
func observe(meter metric.Meter, seen *atomic.Pointer[Status]) (metric.Registration, error) {
	live, err := meter.Int64ObservableGauge("saga_live", metric.WithDescription("Instances that have not ended, by state."))
	if err != nil {
		return nil, fmt.Errorf("gauge of live instances: %w", err)
	}
	oldest, err := meter.Float64ObservableGauge("saga_oldest", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest instance that needs a person has been so, by state."))
	if err != nil {
		return nil, fmt.Errorf("gauge of the oldest instance: %w", err)
	}
	overdue, err := meter.Int64ObservableGauge("saga_overdue", metric.WithDescription("Lanes that should have run more than a minute ago."))
	if err != nil {
		return nil, fmt.Errorf("gauge of overdue lanes: %w", err)
	}
	in := func(state State) metric.MeasurementOption {
		return metric.WithAttributes(attribute.String("state", string(state)))
	}
	shown, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		now := seen.Load()
		if now == nil {
			return nil
		}
		for _, state := range []State{Waiting, Running, Compensating, InDoubt, StuckState} {
			o.ObserveInt64(live, int64(now.States[state]), in(state))
		}
		for state, age := range map[State]time.Duration{InDoubt: now.OldestInDoubt, StuckState: now.OldestStuck} {
			o.ObserveFloat64(oldest, age.Seconds(), in(state))
		}
		o.ObserveInt64(overdue, int64(now.Overdue))
		return nil
	}, live, oldest, overdue)
	if err != nil {
		return nil, fmt.Errorf("gauges: %w", err)
	}
	return shown, nil
}
