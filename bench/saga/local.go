package main

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/saga"
)

// enough is how many transactions pgbench must do in a second for the aims in sagas a second to apply.
const enough = 7000

// local measures a saga of five local steps, each of which writes a row, with a hundred instances in a transaction and with
// one.
func (b *bench) local(ctx context.Context) ([]table.Row, error) {
	var tps, one, each, all, ratios, beside []float64
	err := b.withSagas(ctx, "local", func(pool *pgxpool.Pool) error {
		for n := range b.Rounds {
			transactions, err := b.pgbenchTPS(ctx)
			if err != nil {
				return err
			}
			var figures [3]float64
			for i, r := range []struct {
				instances, batchSize int
				def                  *saga.Definition
			}{
				{b.few, 1, inSets()},
				{b.few, 100, oneByOne()},
				{b.sagas, 100, inSets()},
			} {
				opts := saga.EngineOptions{BatchSize: r.batchSize, Workers: workers}
				if figures[i], err = carry(ctx, pool, r.instances, opts, r.def); err != nil {
					return err
				}
			}
			tps, one, each, all = append(tps, transactions), append(one, figures[0]), append(each, figures[1]), append(all, figures[2])
			ratios, beside = append(ratios, figures[2]/figures[0]), append(beside, figures[2]/transactions)
			fmt.Printf("local, round %d: pgbench %.0f tps, batch 1 %.0f sagas/s, batch 100 %.0f, with a statement for each step of each instance %.0f\n",
				n+1, transactions, figures[0], figures[2], figures[1])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{
		{Name: "pgbench: one step's effect and journal in a transaction (tps)", Value: table.Median(tps), Format: "%.0f"},
		{Name: "five local steps, batch 1 (sagas/s)", Value: table.Median(one), Format: "%.0f"},
		{Name: "five local steps, batch 100, a statement each (sagas/s)", Value: table.Median(each), Format: "%.0f"},
		aimedAt("five local steps, batch 100, set-based (sagas/s)", all, 5000, table.Median(tps)),
		table.Ratio("five local steps: sagas/s ÷ pgbench's tps", beside, 0.71),
		table.Ratio("five local steps: batch 100 ÷ batch 1", ratios, 8),
	}, nil
}

// aimedAt is a row of sagas a second, with an aim on machines that are fast enough for it.
func aimedAt(name string, values []float64, least, tps float64) table.Row {
	row := table.Row{Name: name, Value: table.Median(values), Format: "%.0f"}
	if tps >= enough {
		row.Aim, row.Met = fmt.Sprint("≥ ", least), row.Value >= least
		return row
	}
	fmt.Printf("pgbench did less than %d tps: the aim of %.0f sagas/s is for machines that do more\n", enough, least)
	return row
}

// carry has an engine carry n instances, each in a lane of its own, to their end, and returns how many it did in a second.
func carry(ctx context.Context, pool *pgxpool.Pool, n int, opts saga.EngineOptions, def *saga.Definition) (float64, error) {
	if err := fresh(ctx, pool, `effects`, func() error {
		return start(ctx, pool, n, func(i int) saga.NewInstance { return inLane(fmt.Sprint("user-", i), def.Name()) })
	}); err != nil {
		return 0, err
	}
	if err := whileRunning(ctx, pool, opts, []*saga.Definition{def}, func(*saga.Engine) error { return untilEnded(ctx, pool) }); err != nil {
		return 0, err
	}
	return perSec(ctx, pool, n)
}

// inSets is a saga whose steps write the rows of all instances that are at them at once.
func inSets() *saga.Definition {
	step := func(name string) *saga.LocalStep { return saga.LocalBatch(name, insertAll) }
	return saga.Define("in sets", 1, step("one"), step("two"), step("three"), step("four"), step("five").Pivot())
}

// oneByOne is a saga whose steps write one row each.
func oneByOne() *saga.Definition {
	step := func(name string) *saga.LocalStep { return saga.Local(name, insert) }
	return saga.Define("one by one", 1, step("one"), step("two"), step("three"), step("four"), step("five").Pivot())
}

func insertAll(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	ids := make([]uuid.UUID, len(in))
	for i := range in {
		ids[i] = in[i].ID
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (saga_id) SELECT unnest($1::uuid[])`, ids)
	return nil, err
}

func insert(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (saga_id) VALUES ($1)`, in.ID)
	return err
}
