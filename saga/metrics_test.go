package saga_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
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

// Each way in which a compensation is tried is counted with its outcome, and each local step has its time.
func TestCompensationsAndLocalStepsAreMeasured(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	var refused, failed atomic.Bool
	refund := func(ctx context.Context, in *saga.Instance, call *saga.Call) error {
		if refused.CompareAndSwap(false, true) {
			return errTimeout
		}
		return p.refund(ctx, in, call)
	}
	giveBack := func(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
		if failed.CompareAndSwap(false, true) {
			return nil, errors.New("not now")
		}
		return release(ctx, tx, in)
	}
	def := saga.Define("trip", 1,
		saga.LocalBatch("hold seat", hold).UndoBatch(giveBack),
		saga.Remote("charge", p.charge).Query(p.find).Undo(refund).Timeout(time.Second),
		saga.Local("confirm", func(context.Context, pgx.Tx, *saga.Instance) error { return saga.Rejected("overbooked") }).Pivot())
	in := newTrip("anna")
	start(t, pool, in)
	reader := sdk.NewManualReader()
	opts := quick()
	opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("saga")
	stop := engine(t, pool, opts, def)
	untilState(t, pool, in.ID, saga.Compensated)
	stop()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, point := range data.DataPoints {
					got[m.Name+labels(point.Attributes)] += uint64(point.Value)
				}
			case metricdata.Histogram[float64]:
				for _, point := range data.DataPoints {
					got[m.Name+labels(point.Attributes)] += point.Count
				}
			}
		}
	}
	want := map[string]uint64{
		"saga_compensations charge failed": 1, "saga_compensations charge succeeded": 1,
		"saga_compensations hold seat failed": 1, "saga_compensations hold seat succeeded": 1,
		"saga_step_duration do hold seat succeeded": 1, "saga_step_duration do confirm rejected": 1,
		"saga_step_duration undo hold seat failed": 1, "saga_step_duration undo hold seat succeeded": 1,
		"saga_step_duration end succeeded":  1,
		"saga_steps do hold seat succeeded": 1, "saga_steps do confirm rejected": 1,
		"saga_steps undo hold seat failed": 1, "saga_steps undo hold seat succeeded": 1, "saga_steps end succeeded": 1,
		"saga_call_duration do charge succeeded": 1, "saga_call_duration undo charge failed": 1, "saga_call_duration undo charge succeeded": 1,
		"saga_finished compensated": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// labels writes kind, step, outcome and state, those that there are.
func labels(set attribute.Set) (s string) {
	for _, key := range []attribute.Key{"kind", "step", "outcome", "state"} {
		if v, ok := set.Value(key); ok && v.AsString() != "" {
			s += " " + v.AsString()
		}
	}
	return s
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
