package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/saga"
)

// workers is the number of transactions that are open at once in each run, of an engine and of pgbench.
const workers = 8

// withSagas makes a database with the saga tables and one for effects, hands a pool to use, and removes it.
func (b *bench) withSagas(ctx context.Context, name string, use func(pool *pgxpool.Pool) error) error {
	return b.Server.Within(ctx, name, func(url string) error {
		if err := pgserver.Migrate(ctx, url, map[string]fs.FS{"saga_migrations": saga.Migrations()}); err != nil {
			return err
		}
		pool, err := newPool(ctx, url, nil)
		if err != nil {
			return err
		}
		defer pool.Close()
		if _, err := pool.Exec(ctx, `CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, saga_id uuid NOT NULL)`); err != nil {
			return err
		}
		return use(pool)
	})
}

func newPool(ctx context.Context, url string, tracer pgx.QueryTracer) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = workers + 6
	config.ConnConfig.Tracer = tracer
	return pgxpool.NewWithConfig(ctx, config)
}

// pgbenchTPS is what pgbench does of one local step by itself, a transaction each, in a database of its own.
func (b *bench) pgbenchTPS(ctx context.Context) (tps float64, err error) {
	err = b.withSagas(ctx, "pgbench", func(*pgxpool.Pool) error {
		tps, err = b.Server.Pgbench(ctx, b.Server.URL("pgbench"), "bench/saga/step.pgbench.sql", workers, b.pgbench)
		return err
	})
	return tps, err
}

// start commits n instances, a thousand a transaction.
func start(ctx context.Context, pool *pgxpool.Pool, n int, instance func(i int) saga.NewInstance) error {
	const page = 1000
	for from := 0; from < n; from += page {
		var starts []saga.NewInstance
		for i := from; i < min(from+page, n); i++ {
			starts = append(starts, instance(i))
		}
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
				return err
			}
			return saga.Start(ctx, tx, starts...)
		}); err != nil {
			return err
		}
	}
	return nil
}

// inLane returns an instance of version 1 of a definition.
func inLane(lane, definition string) saga.NewInstance {
	return saga.NewInstance{ID: uuid.Must(uuid.NewV7()), Lane: lane, Definition: definition, Version: 1}
}

// fresh forgets all sagas, and what is in the tables beside, and has fill write new ones. The checkpoint comes before that: as in
// life, most of what an engine changes was written a moment ago, and its pages are in the log already.
func fresh(ctx context.Context, pool *pgxpool.Pool, beside string, fill func() error) error {
	for _, statement := range []string{`TRUNCATE saga_lanes, saga_instances, saga_journal, ` + beside + ` CASCADE`, `CHECKPOINT`} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			return err
		}
	}
	if err := fill(); err != nil {
		return err
	}
	_, err := pool.Exec(ctx, `ANALYZE`) // as autovacuum would
	return err
}

// whileRunning runs an engine until use returns.
func whileRunning(ctx context.Context, pool *pgxpool.Pool, opts saga.EngineOptions, defs []*saga.Definition, use func(e *saga.Engine) error) error {
	opts.Log = slog.New(slog.DiscardHandler)
	engine, err := saga.NewEngine(pool, defs, opts)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(running) }()
	err = use(engine)
	stop()
	return errors.Join(err, <-ended)
}

// untilEnded waits until no instance is live, whoever runs them. One that is stuck is an error.
func untilEnded(ctx context.Context, pool *pgxpool.Pool) error {
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		var live bool
		var stuck *string
		if err := pool.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM saga_instances WHERE finished_at IS NULL),
			       (SELECT step_name || ': ' || error FROM saga_instances WHERE state = 'stuck' LIMIT 1)`).Scan(&live, &stuck); err != nil {
			return err
		}
		if stuck != nil {
			return fmt.Errorf("an instance is stuck at %s", *stuck)
		}
		if !live {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// perSec returns how many instances were completed in a second, from when the first began to when the last had ended, by the
// clock of Postgres. All n must have been.
func perSec(ctx context.Context, pool *pgxpool.Pool, n int) (float64, error) {
	var completed int
	var seconds float64
	if err := pool.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE state = 'completed'), extract(epoch FROM max(finished_at) - min(started_at))::float8
		FROM saga_instances`).Scan(&completed, &seconds); err != nil {
		return 0, err
	}
	if completed != n {
		return 0, fmt.Errorf("%d of %d instances were completed", completed, n)
	}
	return float64(n) / seconds, nil
}
