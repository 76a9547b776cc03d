package saga_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
)

// Five local steps, each with a row to write, in batches and one by one.
func BenchmarkFiveLocalSteps(b *testing.B) {
	step := func(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
		ids := make([][16]byte, len(in))
		for i := range in {
			ids[i] = in[i].ID
		}
		_, err := tx.Exec(ctx, `INSERT INTO effects SELECT unnest($1::uuid[])`, ids)
		return nil, err
	}
	def := func() *saga.Definition {
		return saga.Define("trip", 1,
			saga.LocalBatch("one", step), saga.LocalBatch("two", step), saga.LocalBatch("three", step),
			saga.LocalBatch("four", step), saga.LocalBatch("five", step).Pivot())
	}
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			pool := database(b)
			if _, err := pool.Exec(b.Context(), `CREATE TABLE effects (saga_id uuid)`); err != nil {
				b.Fatal(err)
			}
			runAll(b, pool, saga.EngineOptions{BatchSize: size, Log: slog.New(slog.DiscardHandler)}, def())
		})
	}
}

// The trip with its provider in this process: two transactions and three calls each.
func BenchmarkTrip(b *testing.B) {
	pool := database(b)
	runAll(b, pool, saga.EngineOptions{Log: slog.New(slog.DiscardHandler)}, trip(newProvider()))
}

// runAll starts b.N instances in lanes of their own and measures until they have ended.
func runAll(b *testing.B, pool *pgxpool.Pool, opts saga.EngineOptions, def *saga.Definition) {
	for from := 0; from < b.N; from += 1000 {
		var page []saga.NewInstance
		for i := from; i < min(from+1000, b.N); i++ {
			page = append(page, newTrip(fmt.Sprintf("user-%d", i)))
		}
		start(b, pool, page...)
	}
	b.ResetTimer()
	began := time.Now()
	stop := engine(b, pool, opts, def)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for count(b, pool, `SELECT count(*) FROM saga_lanes WHERE pending > 0`) > 0 {
		<-tick.C
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "sagas/s")
	b.StopTimer()
	stop()
}

// Claims stay flat behind 100 blocked heads, whatever waits behind them.
func BenchmarkClaimBehindBlockedLanes(b *testing.B) {
	for _, waiting := range []int{1000, 100000} {
		b.Run(fmt.Sprintf("waiting=%d", waiting), func(b *testing.B) {
			pool := database(b)
			for from := 0; from < waiting; from += 5000 {
				var page []saga.NewInstance
				for i := from; i < min(from+5000, waiting); i++ {
					page = append(page, newTrip(fmt.Sprintf("user-%d", i%100)))
				}
				start(b, pool, page...)
			}
			for _, sql := range []string{`UPDATE saga_lanes SET run_at = now() + interval '1 hour'`, `ANALYZE`} {
				if _, err := pool.Exec(b.Context(), sql); err != nil {
					b.Fatal(err)
				}
			}
			stop := engine(b, pool, saga.EngineOptions{Log: slog.New(slog.DiscardHandler)}, trip(newProvider()))
			defer stop()
			b.ResetTimer()
			for i := range b.N {
				in := newTrip(fmt.Sprintf("free-%d", i))
				start(b, pool, in)
				for load(b, pool, in.ID).Instance.State != saga.Completed {
					continue
				}
			}
		})
	}
}
