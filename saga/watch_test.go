package saga

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

func TestGaugesShowTheStatusAndNothingWhileItIsUnknown(t *testing.T) {
	t.Parallel()
	reader := sdk.NewManualReader()
	var seen atomic.Pointer[Status]
	if _, err := observe(sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("saga"), &seen); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		sentence string
		status   *Status
		want     map[string]float64
	}{
		{"not counted yet", nil, map[string]float64{}},
		{"nothing is live", &Status{}, map[string]float64{
			"saga_live waiting": 0, "saga_live running": 0, "saga_live compensating": 0, "saga_live in_doubt": 0, "saga_live stuck": 0,
			"saga_oldest in_doubt": 0, "saga_oldest stuck": 0, "saga_overdue": 0,
		}},
		{"all at once", &Status{
			States:  map[State]int{Waiting: 1, Running: 2, Compensating: 3, InDoubt: 4, StuckState: 5},
			Overdue: 6, OldestOverdue: 7 * time.Second, OldestInDoubt: 8 * time.Second, OldestStuck: 9500 * time.Millisecond,
		}, map[string]float64{
			"saga_live waiting": 1, "saga_live running": 2, "saga_live compensating": 3, "saga_live in_doubt": 4, "saga_live stuck": 5,
			"saga_oldest in_doubt": 8, "saga_oldest stuck": 9.5, "saga_overdue": 6,
		}},
		{"not counted any more", nil, map[string]float64{}},
	} {
		seen.Store(tc.status)
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, scope := range all.ScopeMetrics {
			for _, m := range scope.Metrics {
				switch data := m.Data.(type) {
				case metricdata.Gauge[int64]:
					show(got, m.Name, data.DataPoints)
				case metricdata.Gauge[float64]:
					show(got, m.Name, data.DataPoints)
				}
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: gauges (-want +got):\n%s", tc.sentence, diff)
		}
	}
}

func show[N int64 | float64](shown map[string]float64, name string, points []metricdata.DataPoint[N]) {
	for _, p := range points {
		key := name
		if state, ok := p.Attributes.Value(attribute.Key("state")); ok {
			key += " " + state.AsString()
		}
		shown[key] = float64(p.Value)
	}
}
