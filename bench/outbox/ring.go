package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
)

// polled measures a poll that finds nothing, with an empty ring and with a full one.
func (b *bench) polled(ctx context.Context) (rows []table.Row, err error) {
	err = b.withOutbox(ctx, "ring", func(url string) error {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		var empty float64
		for _, state := range []struct {
			name    string
			prepare func() error
		}{
			{"empty", func() error { return nil }},
			{fmt.Sprintf("%d rows, not analysed", b.ring), func() error { return fillRing(ctx, conn, b.ring) }},
			{fmt.Sprintf("%d rows, analysed", b.ring), func() error {
				_, err := conn.Exec(ctx, `ANALYZE `+schema+`.outbox`)
				return err
			}},
		} {
			if err := state.prepare(); err != nil {
				return err
			}
			var medians []float64
			for range b.Rounds {
				median, err := pollTime(ctx, conn, b.polls)
				if err != nil {
					return err
				}
				medians = append(medians, median)
			}
			ms := table.Median(medians)
			fmt.Printf("poll, ring %s: %.3f ms\n", state.name, ms)
			rows = append(rows, table.Row{Name: "poll, ring " + state.name + " (ms)", Value: ms, Format: "%.3f", Aim: "≤ 0.5", Met: ms <= 0.5})
			if empty == 0 {
				empty = ms
				continue
			}
			change := 100 * (ms/empty - 1)
			rows = append(rows, table.Row{Name: "poll, ring " + state.name + ", against an empty one (%)", Value: change, Format: "%+.0f", Aim: "± 20", Met: math.Abs(change) <= 20})
		}
		return nil
	})
	return rows, err
}

// fillRing writes n small rows over all leaves, in a hundred transactions, and keeps autovacuum from analysing them.
func fillRing(ctx context.Context, conn *pgx.Conn, n int) error {
	const transactions = 100
	for leaf := range 8 {
		if _, err := conn.Exec(ctx, fmt.Sprintf(`ALTER TABLE %s.outbox_%d SET (autovacuum_enabled = false)`, schema, leaf)); err != nil {
			return err
		}
	}
	for i := range transactions {
		if _, err := conn.Exec(ctx, `
			INSERT INTO `+schema+`.outbox (slot, id, topic, key, type, content_type, payload)
			SELECT $1::integer * 8 / `+fmt.Sprint(transactions)+`, gen_random_uuid(), '`+topic+`', 'user-' || n % 10000, 'bench.written.v1', 'application/json', '{}'
			FROM generate_series(1, $2::integer) AS n`, i, n/transactions); err != nil {
			return fmt.Errorf("fill the ring: %w", err)
		}
	}
	_, err := conn.Exec(ctx, `CHECKPOINT`)
	return err
}

// pollTime returns the median of n polls, in milliseconds, round trip included.
func pollTime(ctx context.Context, conn *pgx.Conn, n int) (float64, error) {
	var prev string
	if err := conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&prev); err != nil {
		return 0, err
	}
	times := make([]float64, n)
	for i := range times {
		began := time.Now()
		if _, err := conn.Exec(ctx, `SELECT * FROM `+schema+`.outbox_poll($1::text::pg_snapshot)`, prev); err != nil {
			return 0, err
		}
		times[i] = time.Since(began).Seconds() * 1000
	}
	return table.Median(times), nil
}
