package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/outbox"
)

// bareInsert writes the same bytes into the same columns as [outbox.Write].
const bareInsert = `
	INSERT INTO ` + schema + `.outbox (id, topic, key, type, content_type, headers, payload)
	VALUES ($1::text::uuid, $2, $3, $4, $5, $6::text::jsonb, $7)`

// writes measures transactions that insert a row of their own and a message, by Write and by a bare INSERT.
func (b *bench) writes(ctx context.Context) ([]table.Row, error) {
	kinds := []func(context.Context, pgx.Tx, outbox.Message) error{
		func(ctx context.Context, tx pgx.Tx, m outbox.Message) error {
			_, err := tx.Exec(ctx, bareInsert, m.ID.String(), m.Topic, m.Key, m.Type, "application/json", "{}", m.Payload)
			return err
		},
		func(ctx context.Context, tx pgx.Tx, m outbox.Message) error {
			return outbox.Writer{Schema: schema}.Write(ctx, tx, m)
		},
	}
	var bare, write, slower []float64
	err := b.withOutbox(ctx, "write", func(url string) error {
		const clients = 8
		pool, err := pgxpool.New(ctx, fmt.Sprintf("%s&pool_max_conns=%d", url, clients))
		if err != nil {
			return err
		}
		defer pool.Close()
		// Short turns of each kind, so that what disturbs the machine disturbs both.
		const turns = 4
		for n := range b.Rounds {
			var committed [2]int64
			for turn := range 2 * turns {
				count, err := writeFor(ctx, pool, clients, b.writeFor/turns, kinds[turn%2])
				if err != nil {
					return err
				}
				committed[turn%2] += count
			}
			bare = append(bare, float64(committed[0])/b.writeFor.Seconds())
			write = append(write, float64(committed[1])/b.writeFor.Seconds())
			slower = append(slower, 100*(bare[n]/write[n]-1))
			fmt.Printf("write, round %d: bare INSERT %.0f tx/s, Write %.0f\n", n+1, bare[n], write[n])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	cost := table.Median(slower)
	return []table.Row{
		{Name: "transactions with a bare INSERT of the message (tx/s)", Value: table.Median(bare), Format: "%.0f"},
		{Name: "the same with Write (tx/s)", Value: table.Median(write), Format: "%.0f"},
		{Name: "Write slower by (%)", Value: cost, Format: "%.1f", Aim: "≤ 10", Met: cost <= 10},
	}, nil
}

// writeFor commits transactions one after the other on each of clients for d and returns how many.
func writeFor(ctx context.Context, pool *pgxpool.Pool, clients int, d time.Duration, insert func(context.Context, pgx.Tx, outbox.Message) error) (int64, error) {
	var committed atomic.Int64
	deadline := time.Now().Add(d)
	group, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		group.Go(func() error {
			for n := 0; time.Now().Before(deadline); n++ {
				m := outbox.Message{
					ID: uuid.Must(uuid.NewV7()), Topic: topic, Key: fmt.Sprintf("user-%d-%d", c, n%1000), Type: "bench.written.v1", Payload: make([]byte, 300),
				}
				if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, `INSERT INTO `+schema+`.orders (note) VALUES ($1)`, m.Key); err != nil {
						return err
					}
					return insert(ctx, tx, m)
				}); err != nil {
					return err
				}
				committed.Add(1)
			}
			return nil
		})
	}
	err := group.Wait()
	return committed.Load(), err
}
