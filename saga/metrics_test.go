package saga_test

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/orderflow-dev/orderflow/saga"
)

func TestGaugesShowWhatNeedsAPerson(t *testing.T) {
	t.Parallel()
	pool := database(t)
	dark := newProvider()
	never := func(context.Context, *saga.Instance, *saga.Call) (any, error) { return nil, errTimeout }
	silent := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) { return saga.NotYet(), nil }
	def := saga.Define("trip", 1,
		saga.Remote("charge", never).Query(silent).Undo(dark.refund).Timeout(time.Millisecond).KeyWindow(30*time.Millisecond))
	start(t, pool, newTrip("anna"), newTrip("anna"), newTrip("bert"))
	reader := sdk.NewManualReader()
	opts := quick()
	opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("saga")
	stop := engine(t, pool, opts, def)
	until(t, "gauges show two in doubt, one that waits, and the age of the first", func() bool {
		live, oldest := gauge[int64](t, reader, "saga_live"), gauge[float64](t, reader, "saga_oldest")
		return live["in_doubt"] == 2 && live["waiting"] == 1 && live["stuck"] == 0 && oldest["in_doubt"] > 0 && oldest["stuck"] == 0
	})
	stop()
	if live := gauge[int64](t, reader, "saga_live"); len(live) != 0 {
		t.Errorf("after Run the gauges still show %v", live)
	}
}

// gauge returns what a gauge shows, by state.
func gauge[N int64 | float64](t *testing.T, reader *sdk.ManualReader, name string) map[string]N {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	shown := map[string]N{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if data, ok := m.Data.(metricdata.Gauge[N]); ok && m.Name == name {
				for _, point := range data.DataPoints {
					state, _ := point.Attributes.Value(attribute.Key("state"))
					shown[state.AsString()] = point.Value
				}
			}
		}
	}
	return shown
}
