package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
)

// processedRows measures the consumer with an empty processed_messages, and with one that is full of the last four weeks.
func (b *bench) processedRows(ctx context.Context) ([]table.Row, error) {
	var changes []float64
	err := b.withInbox(ctx, "rows", func(empty *pgxpool.Pool) error {
		return b.withInbox(ctx, "rows_filled", func(filled *pgxpool.Pool) error {
			l, err := b.produce(ctx, "rows", partitions, b.messages, key)
			if err != nil {
				return err
			}
			if err := fillProcessed(ctx, filled, b.rows); err != nil {
				return err
			}
			for n := range b.Rounds {
				without, err := b.consume(ctx, empty, run{load: l, batchSize: 100, handle: insert})
				if err != nil {
					return err
				}
				with, err := b.consume(ctx, filled, run{load: l, batchSize: 100, handle: insert})
				if err != nil {
					return err
				}
				changes = append(changes, 100*(with/without-1))
				fmt.Printf("rows, round %d: none %.0f msg/s, %d %.0f\n", n+1, without, b.rows, with)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	change := table.Median(changes)
	return []table.Row{{
		Name: fmt.Sprintf("%d processed rows, msg/s against none (%%)", b.rows), Value: change, Format: "%+.0f", Aim: "± 20", Met: math.Abs(change) <= 20,
	}}, nil
}

// reclaim measures how long it takes to empty the leaf of a day, and how long others wait for their inserts meanwhile.
func (b *bench) reclaim(ctx context.Context) ([]table.Row, error) {
	var took, calm, waited []float64
	err := b.withInbox(ctx, "reclaim", func(pool *pgxpool.Pool) error {
		for n := range b.Rounds {
			if err := fillDay(ctx, pool, b.day); err != nil {
				return err
			}
			before, err := longestInsert(ctx, pool, func() error {
				<-time.After(time.Second)
				return nil
			})
			if err != nil {
				return err
			}
			var lasted time.Duration
			longest, err := longestInsert(ctx, pool, func() error {
				began := time.Now()
				var emptied bool
				if err := pool.QueryRow(ctx, `SELECT inbox_reclaim()`).Scan(&emptied); err != nil || !emptied {
					return errors.Join(err, fmt.Errorf("inbox_reclaim() = %t", emptied))
				}
				lasted = time.Since(began)
				<-time.After(time.Second - min(lasted, time.Second)) // as long as the calm one
				return nil
			})
			if err != nil {
				return err
			}
			took, calm, waited = append(took, ms(lasted)), append(calm, ms(before)), append(waited, ms(longest))
			fmt.Printf("reclaim, round %d: %.1f ms, longest insert %.1f ms, before %.1f\n", n+1, took[n], waited[n], calm[n])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{
		{Name: fmt.Sprintf("reclaim of a day of %d rows (ms)", b.day), Value: table.Median(took), Format: "%.1f", Aim: "≤ 1000", Met: table.Median(took) <= 1000},
		{Name: "longest insert of 4 clients in a second with it (ms)", Value: table.Median(waited), Format: "%.1f", Aim: "≤ 50", Met: table.Median(waited) <= 50},
		{Name: "longest insert in a second without it (ms)", Value: table.Median(calm), Format: "%.1f"},
	}, nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// fillDay fills the leaf that is to be reclaimed next: that of the day after tomorrow, four weeks and two days ago.
func fillDay(ctx context.Context, pool *pgxpool.Pool, n int) error {
	return fill(ctx, pool, `
		INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
		SELECT `+slotOf+`, 'before', `+idOf+`, decode(md5(n::text), 'hex'), 'done'
		FROM (
			SELECT n, ((floor(extract(epoch FROM now()) / 86400) - 30) * 86400000)::bigint + n AS ms
			FROM generate_series(1, $1::integer) AS n
		) AS m`, n)
}

// longestInsert has clients insert dedup rows one after the other while do runs, and returns the longest time that one took.
func longestInsert(ctx context.Context, pool *pgxpool.Pool, do func() error) (time.Duration, error) {
	const clients = 4
	var mu sync.Mutex
	var longest time.Duration
	done := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	for range clients {
		group.Go(func() error {
			for {
				select {
				case <-done:
					return nil
				default:
				}
				began := time.Now()
				if _, err := pool.Exec(ctx, `
					INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
					VALUES ($1, 'bench', $2::text::uuid, '', 'done')`, today(), uuid.Must(uuid.NewV7()).String()); err != nil {
					return err
				}
				mu.Lock()
				longest = max(longest, time.Since(began))
				mu.Unlock()
			}
		})
	}
	err := do()
	close(done)
	return longest, errors.Join(err, group.Wait())
}
