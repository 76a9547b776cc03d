package inbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// holdCount is what waits for a try or for a person in a group.
type holdCount struct {
	held, dead             int64   // keys, by the state of their head
	oldestHeld, oldestDead float64 // seconds since the first of them was held; 0 without one
	letters                int64   // dead messages, also those whose key was released
}

// gauge counts the holds of the group until ctx ends, and shows them: what could not be counted is not shown. No counter can do
// it: a message that is neither handled nor dead counts nowhere, and lag does not see it.
func (c *Consumer) gauge(ctx context.Context) {
	if c.opts.Meter == nil {
		return
	}
	var seen atomic.Pointer[holdCount]
	shown, err := c.meters.observe(c.opts.Meter, &seen)
	if err != nil {
		c.opts.Log.ErrorContext(ctx, "no gauges of held keys", "error", err)
		return
	}
	defer func() { _ = shown.Unregister() }()
	for ctx.Err() == nil {
		now, err := c.store.countHolds(ctx, c.pool)
		if err == nil {
			seen.Store(&now)
		} else if ctx.Err() == nil {
			seen.Store(nil)
			c.opts.Log.WarnContext(ctx, "held keys not counted, will retry", "error", err)
		}
		pause(ctx, gaugeEvery)
	}
}

const gaugeEvery = 5 * time.Second

// observe registers the gauges. All consumers of a group show the same figures: take the highest, not the sum.
func (m meters) observe(meter metric.Meter, seen *atomic.Pointer[holdCount]) (metric.Registration, error) {
	holds, err := meter.Int64ObservableGauge("inbox.holds",
		metric.WithDescription("Keys that wait, by the state of their first message: held, which is tried again, or dead."))
	if err != nil {
		return nil, fmt.Errorf("gauge of held keys: %w", err)
	}
	oldest, err := meter.Float64ObservableGauge("inbox.holds.oldest", metric.WithUnit("s"),
		metric.WithDescription("How long the key that waits longest has been waiting, by state; 0 when none does."))
	if err != nil {
		return nil, fmt.Errorf("gauge of the oldest hold: %w", err)
	}
	letters, err := meter.Int64ObservableGauge("inbox.dead_letters",
		metric.WithDescription("Messages that are dead until a person acts, also those whose key was released."))
	if err != nil {
		return nil, fmt.Errorf("gauge of dead letters: %w", err)
	}
	in := func(state string) metric.MeasurementOption {
		return metric.WithAttributes(m.group, attribute.String("state", state))
	}
	shown, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		now := seen.Load()
		if now == nil {
			return nil
		}
		o.ObserveInt64(holds, now.held, in(StateHeld))
		o.ObserveInt64(holds, now.dead, in(StateDead))
		o.ObserveFloat64(oldest, now.oldestHeld, in(StateHeld))
		o.ObserveFloat64(oldest, now.oldestDead, in(StateDead))
		o.ObserveInt64(letters, now.letters, metric.WithAttributes(m.group))
		return nil
	}, holds, oldest, letters)
	if err != nil {
		return nil, fmt.Errorf("gauges: %w", err)
	}
	return shown, nil
}

func (s store) countHolds(ctx context.Context, pool *pgxpool.Pool) (n holdCount, err error) {
	err = pool.QueryRow(ctx, s.sql(`
		SELECT count(*) FILTER (WHERE state = 'held'), count(*) FILTER (WHERE state = 'dead'),
		       coalesce(extract(epoch FROM clock_timestamp() - min(since) FILTER (WHERE state = 'held')), 0)::float8,
		       coalesce(extract(epoch FROM clock_timestamp() - min(since) FILTER (WHERE state = 'dead')), 0)::float8,
		       (SELECT count(*) FROM {parked_messages} WHERE consumer_group = $1 AND state = 'dead')
		FROM {inbox_holds}
		WHERE consumer_group = $1`), s.group).Scan(&n.held, &n.dead, &n.oldestHeld, &n.oldestDead, &n.letters)
	if err != nil {
		return n, fmt.Errorf("count held keys: %w", err)
	}
	return n, nil
}
