package outbox_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func TestMetricsSayWhatIsPublishedAndWhatWaits(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	refuse, _ := poison("bad", 1)
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	_, stop := start(t, db.Pool, &outboxtest.Broker{Refuse: refuse}, outbox.RelayOptions{Meter: provider.Meter("outbox")})
	write(t, db.Pool, message("orders", "good", 1), message("orders", "good", 2), message("orders", "bad", 1))
	want := map[string]float64{
		"outbox.latency": 2, "outbox.keys_parked": 1, "outbox.parked_keys": 1, "outbox.backlog": 0, "outbox.epoch": 1,
	}
	eventually(t, func() error {
		got, err := collect(t, reader)
		for name, value := range want {
			if got[name] != value {
				err = errors.Join(err, fmt.Errorf("%s is %v, want %v", name, got[name], value))
			}
		}
		return err
	})
	stop()
	if got, err := collect(t, reader); err != nil || len(got) == 0 {
		t.Errorf("after Run the counters are gone: %v", err)
	} else if _, observed := got["outbox.backlog"]; observed {
		t.Error("after Run the gauges still show what the relay saw last")
	}
}

// Each figure that an alarm is about, made to move by what it is about.
func TestMetricsSayWhatGoesWrong(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	start(t, db.Pool, broker, outbox.RelayOptions{Lease: time.Second, Meter: provider.Meter("outbox")})
	write(t, db.Pool, message("orders", "a", 1))
	waitFor(t, broker, 1)
	outOfOrder(t, db.Pool, broker)
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) })
	open := begin(t, db.Pool)
	broker.SetDown(true)
	write(t, db.Pool, message("orders", "a", 2), message("orders", "a", 3))
	// Another leader, who then gives up.
	if _, err := db.Pool.Exec(t.Context(), `
		UPDATE orders.outbox_lease SET epoch = epoch + 1, holder = '', expires_at = '-infinity'`); err != nil {
		t.Fatal(err)
	}
	pid := float64(open.Conn().PgConn().PID())
	eventually(t, func() error {
		got, err := collect(t, reader)
		for name, value := range map[string]float64{
			"outbox.order_violations": 1, "outbox.backlog": 2, "outbox.oldest_transaction.pid": pid,
		} {
			if got[name] != value {
				err = errors.Join(err, fmt.Errorf("%s is %v, want %v", name, got[name], value))
			}
		}
		for _, name := range []string{
			"outbox.oldest_unpublished", "outbox.oldest_transaction", "outbox.fenced_writes", "outbox.restarts", "outbox.poll.duration",
		} {
			if got[name] <= 0 {
				err = errors.Join(err, fmt.Errorf("%s is %v, want more than 0", name, got[name]))
			}
		}
		if got["outbox.epoch"] < 3 {
			err = errors.Join(err, fmt.Errorf("outbox.epoch is %v, want the one after the other leader's", got["outbox.epoch"]))
		}
		return err
	})
}

// collect returns what each instrument shows: a sum, a gauge, or how often a histogram was recorded.
func collect(t *testing.T, reader *sdk.ManualReader) (map[string]float64, error) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		return nil, err
	}
	got := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				got[m.Name] = float64(data.DataPoints[0].Value)
			case metricdata.Gauge[float64]:
				got[m.Name] = data.DataPoints[0].Value
			case metricdata.Histogram[float64]:
				got[m.Name] = float64(data.DataPoints[0].Count)
			}
		}
	}
	return got, nil
}
