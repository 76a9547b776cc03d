package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/inbox"
)

// enough is how many transactions pgbench must do in a second for the aims in messages a second to apply.
const enough = 7000

func key(i int) string { return fmt.Sprintf("user-%d", i%10_000) }

// batches measures dedup and one inserted row for each message, in batches of one and of a hundred, and the replay of
// everything that was consumed. pgbench beside it does the transaction of a batch of one.
func (b *bench) batches(ctx context.Context) ([]table.Row, error) {
	var tps, one, hundred, set, ratios, setRatios, replays []float64
	err := b.withInbox(ctx, "batch", func(pool *pgxpool.Pool) error {
		many, err := b.produce(ctx, "batch.many", partitions, b.messages, key)
		if err != nil {
			return err
		}
		few, err := b.produce(ctx, "batch.few", partitions, b.few, key)
		if err != nil {
			return err
		}
		for n := range b.Rounds {
			figure, err := b.Server.Pgbench(ctx, b.Server.URL("batch"), "bench/inbox/transaction.pgbench.sql", workers, b.pgbench)
			if err != nil {
				return err
			}
			group := b.newGroup()
			var figures [4]float64
			for i, r := range []run{
				{load: few, batchSize: 1, handle: insert},
				{load: many, batchSize: 100, handle: insert, group: group},
				{load: many, batchSize: 100, handleAll: insertAll},
				{load: many, batchSize: 100, handle: insert, group: group}, // again
			} {
				if i == 3 {
					if err := b.forget(ctx, group); err != nil {
						return err
					}
				}
				if figures[i], err = b.consume(ctx, pool, r); err != nil {
					return err
				}
			}
			tps, one, hundred = append(tps, figure), append(one, figures[0]), append(hundred, figures[1])
			set, replays = append(set, figures[2]), append(replays, figures[3])
			ratios, setRatios = append(ratios, figures[1]/figures[0]), append(setRatios, figures[2]/figures[0])
			fmt.Printf("batch, round %d: pgbench %.0f tps, batch 1 %.0f msg/s, batch 100 %.0f, its handler at once %.0f, replay %.0f\n",
				n+1, figure, figures[0], figures[1], figures[2], figures[3])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	quick := table.Median(tps) >= enough
	rows := []table.Row{
		{Name: "pgbench: a dedup row and an effect in a transaction (tps)", Value: table.Median(tps), Format: "%.0f"},
		{Name: "batch 1: dedup and one insert for each message (msg/s)", Value: table.Median(one), Format: "%.0f"},
		perSec("batch 100: the same (msg/s)", hundred, quick),
		table.Ratio("batch 100 ÷ batch 1", ratios, 15),
		perSec("batch 100, a handler of batches inserts at once (msg/s)", set, quick),
		table.Ratio("batch 100 by a handler of batches ÷ batch 1", setRatios, 15),
		perSec("replay of what was consumed: all duplicates (msg/s)", replays, quick),
	}
	if !quick {
		fmt.Printf("pgbench did less than %d tps: the aims in messages a second are for machines that do more\n", enough)
	}
	return rows, nil
}

func perSec(name string, values []float64, aimed bool) table.Row {
	row := table.Row{Name: name, Value: table.Median(values), Format: "%.0f"}
	if aimed {
		row.Aim, row.Met = "≥ 30000", row.Value >= 30_000
	}
	return row
}

// sharedRows measures a handler of batches that counts sales on a thousand rows that all keys share.
func (b *bench) sharedRows(ctx context.Context) ([]table.Row, error) {
	var one, hundred, ratios []float64
	err := b.withInbox(ctx, "shared", func(pool *pgxpool.Pool) error {
		few, err := b.produce(ctx, "shared.few", partitions, b.few, key)
		if err != nil {
			return err
		}
		for n := range b.Rounds {
			single, err := b.consume(ctx, pool, run{load: few, batchSize: 1, handleAll: sell})
			if err != nil {
				return err
			}
			batched, err := b.consume(ctx, pool, run{load: few, batchSize: 100, handleAll: sell})
			if err != nil {
				return err
			}
			one, hundred, ratios = append(one, single), append(hundred, batched), append(ratios, batched/single)
			fmt.Printf("shared, round %d: batch 1 %.0f msg/s, batch 100 %.0f\n", n+1, single, batched)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{
		{Name: "1,000 shared rows, batch 1 (msg/s)", Value: table.Median(one), Format: "%.0f"},
		{Name: "1,000 shared rows, batch 100 (msg/s)", Value: table.Median(hundred), Format: "%.0f"},
		table.Ratio("1,000 shared rows, batch 100 ÷ batch 1", ratios, 7),
	}, nil
}

// sell updates each shared row once, in the order of the rows, as its last write.
func sell(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
	sold := map[int32]int32{}
	for _, m := range msgs {
		sold[1+int32(binary.BigEndian.Uint16(m.ID[14:]))%1000]++
	}
	var skus, counts []int32
	for sku := range sold {
		skus = append(skus, sku)
	}
	slices.Sort(skus)
	for _, sku := range skus {
		counts = append(counts, sold[sku])
	}
	if _, err := tx.Exec(ctx, `SELECT FROM shared WHERE sku = ANY($1) ORDER BY sku FOR UPDATE`, skus); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `
		UPDATE shared SET sold = shared.sold + m.sold
		FROM unnest($1::int[], $2::int[]) AS m (sku, sold) WHERE shared.sku = m.sku`, skus, counts)
	return err
}
