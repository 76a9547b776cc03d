package saga_test

import (
	"context"
	"errors"
	"fmt"
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

// The ages differ by hours, so that a slow machine makes no difference.
func TestInspectCountsWhatIsLiveAndHowLongItHasWaited(t *testing.T) {
	t.Parallel()
	pool := database(t)
	if got, err := saga.Inspect(t.Context(), pool); err != nil || len(got.States) > 0 || got.Overdue > 0 || got.OldestInDoubt+got.OldestStuck+got.OldestOverdue > 0 {
		t.Errorf("Inspect of nothing = %+v, %v", got, err)
	}
	var all []saga.NewInstance
	for i := range 12 {
		all = append(all, newTrip(fmt.Sprint(i)))
	}
	start(t, pool, all...)
	var got saga.Status
	inTx(t, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `
			UPDATE saga_instances i
			SET state = t.state, updated_at = clock_timestamp() - make_interval(hours => t.hours),
				stuck_for = CASE t.state WHEN 'stuck' THEN 'error' END,
				failure_kind = CASE WHEN t.state LIKE 'compensat%' THEN 'rejected' END,
				finished_at = CASE WHEN t.state IN ('completed', 'compensated') THEN clock_timestamp() END
			FROM (VALUES ('0', 'running', 90), ('1', 'running', 80), ('2', 'compensating', 70), ('3', 'in_doubt', 2), ('4', 'in_doubt', 30),
				('5', 'in_doubt', 1), ('6', 'stuck', 3), ('7', 'stuck', 40), ('8', 'completed', 100), ('9', 'compensated', 100)) AS t(lane, state, hours)
			WHERE i.lane = t.lane;
			UPDATE saga_lanes SET run_at = NULL;
			UPDATE saga_lanes SET run_at = clock_timestamp() - interval '2 minutes' WHERE lane IN ('0', '2');
			UPDATE saga_lanes SET run_at = clock_timestamp() - interval '50 hours' WHERE lane = '1';
			UPDATE saga_lanes SET run_at = clock_timestamp() + interval '2 hours' WHERE lane = '3';
			UPDATE saga_lanes SET run_at = clock_timestamp() WHERE lane = '10'`) // due, and not overdue
		if err != nil {
			return err
		}
		got, err = saga.Inspect(t.Context(), tx)
		return err
	})
	states := map[saga.State]int{saga.Waiting: 2, saga.Running: 2, saga.Compensating: 1, saga.InDoubt: 3, saga.StuckState: 2}
	if diff := cmp.Diff(states, got.States); diff != "" || got.Overdue != 3 {
		t.Errorf("%d lanes overdue, want 3; live instances (-want +got):\n%s", got.Overdue, diff)
	}
	for name, age := range map[string]struct {
		got  time.Duration
		want time.Duration
	}{
		"in doubt": {got.OldestInDoubt, 30 * time.Hour}, "stuck": {got.OldestStuck, 40 * time.Hour}, "overdue": {got.OldestOverdue, 50 * time.Hour},
	} {
		if age.got.Truncate(time.Hour) != age.want {
			t.Errorf("the oldest %s is %v old, want %v", name, age.got, age.want)
		}
	}
}

// The other side is asked again and again, and a person may ask too: that makes a doubt no younger.
func TestADoubtIsAsOldAsItWasWhenItIsAskedAboutAgain(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var asked atomic.Int32
	never := func(context.Context, *saga.Instance, *saga.Call) (any, error) { return nil, errTimeout }
	silent := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) {
		asked.Add(1)
		return saga.NotYet(), nil
	}
	def := saga.Define("trip", 1, saga.Remote("charge", never).Query(silent).Timeout(time.Millisecond).KeyWindow(20*time.Millisecond).Pivot())
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), def)
	since := untilState(t, pool, in.ID, saga.InDoubt).Instance.UpdatedAt
	if _, err := pool.Exec(t.Context(), `UPDATE saga_instances SET updated_at = updated_at - interval '5 hours'`); err != nil {
		t.Fatal(err)
	}
	inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
	intervene(t, pool, in.ID, saga.Operator{By: "ops", Reason: "ask now"}, saga.Retry)
	before := asked.Load()
	until(t, "it is asked about again", func() bool { return asked.Load() > before+3 })
	if got := load(t, pool, in.ID).Instance; got.State != saga.InDoubt || !got.UpdatedAt.Equal(since.Add(-5*time.Hour)) {
		t.Errorf("the saga is %s since %v, want it in doubt since %v", got.State, got.UpdatedAt, since.Add(-5*time.Hour))
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
