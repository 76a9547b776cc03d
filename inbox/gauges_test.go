package inbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/orderflow-dev/orderflow/inbox"
)

// A held message is neither done nor dead, and lag does not see it: only the gauges show that its user waits.
func TestGaugesShowTheKeysThatWaitAndSinceWhen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.RetryMin, opts.RetryMax = time.Hour, time.Hour
	reader := sdk.NewManualReader()
	opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("inbox")
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		switch what(m) {
		case "held":
			return inbox.RetryAfter(time.Hour, errors.New("not yet"))
		case "dead":
			return inbox.Permanent(errors.New("never"))
		}
		return apply(ctx, tx, m)
	}
	stop := w.startRoutes([]inbox.Route{
		{Topic: topic, Type: placed, Handle: handle},
		{Topic: "other", Type: placed, Handle: handle, Policy: inbox.ReleaseKey},
	}, opts)
	passed := record("u4", 1, "dead")
	passed.Topic = "other"
	w.produce(record("u1", 1, "held"), record("u1", 2, ""), record("u2", 1, "held"), record("u3", 1, "dead"), passed)
	w.wait("all parked", func() bool { return len(w.parked(inbox.Filter{})) == 5 && w.lag() == 0 })
	w.exec(`UPDATE inbox_holds SET since = since - CASE key WHEN 'u1' THEN interval '2 hours' WHEN 'u3' THEN interval '5 hours' ELSE '0' END`)
	w.exec(`INSERT INTO inbox_holds (consumer_group, topic, key, state, parked, type, since, next_at)
		VALUES ('another', 'orders', 'u9', 'held', 0, '', now() - interval '9 hours', now())`)
	within := func(seconds, hours float64) bool { return seconds >= hours*3600 && seconds < (hours+1)*3600 }
	w.wait("gauges show two keys held, one dead and two dead letters", func() bool {
		holds, oldest := shown[int64](t, reader, "inbox.holds"), shown[float64](t, reader, "inbox.holds.oldest")
		return holds["held"] == 2 && holds["dead"] == 1 && within(oldest["held"], 2) && within(oldest["dead"], 5) &&
			shown[int64](t, reader, "inbox.dead_letters")[""] == 2
	})
	stop()
	if holds := shown[int64](t, reader, "inbox.holds"); len(holds) != 0 {
		t.Errorf("after Run the gauges still show %v", holds)
	}
}

// shown returns what a gauge shows for group "test", by state.
func shown[N int64 | float64](t *testing.T, reader *sdk.ManualReader, name string) map[string]N {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	values := map[string]N{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			data, ok := m.Data.(metricdata.Gauge[N])
			if !ok || m.Name != name {
				continue
			}
			for _, point := range data.DataPoints {
				if group, _ := point.Attributes.Value(attribute.Key("group")); group.AsString() != "test" {
					t.Errorf("%s of group %q, want test", name, group.AsString())
				}
				state, _ := point.Attributes.Value(attribute.Key("state"))
				values[state.AsString()] = point.Value
			}
		}
	}
	return values
}
