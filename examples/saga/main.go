// Saga books a trip: a seat, a card, a confirmation from which there is no way back, and behind it a ticket and an itinerary.
// It says when the trip has ended, and goes on until Ctrl-C:
//
//	make build && bin/orderflow dev --ephemeral --ready-file /tmp/parts.json    # then, in another shell:
//	DATABASE_URL=$(jq -r .postgres /tmp/parts.json) go run ./examples/saga
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/orderflow-dev/orderflow/saga"
)

func main() {
	slog.SetLogLoggerLevel(slog.LevelDebug) // the engine says at this level what has ended
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Getenv("DATABASE_URL"), newWorld()); err != nil {
		slog.Error("example ends", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, databaseURL string, w *world) error {
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrate(ctx, pool); err != nil {
		return err
	}
	engine, err := saga.NewEngine(pool, []*saga.Definition{bookTrip(w)}, saga.EngineOptions{Log: slog.Default()})
	if err != nil {
		return err
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { // the trip and its saga: both are there, or neither is
		trip := newTrip()
		if _, err := tx.Exec(ctx, `INSERT INTO trips (id) VALUES ($1)`, trip.ID); err != nil {
			return err
		}
		return saga.Start(ctx, tx, trip)
	}); err != nil {
		return err
	}
	return engine.Run(ctx) // as many engines as you like: a trip is in the hands of one
}

func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	db := stdlib.OpenDBFromPool(pool)
	p, err := goose.NewProvider(goose.DialectPostgres, db, saga.Migrations(), goose.WithTableName("saga_migrations"))
	if err == nil {
		_, err = p.Up(ctx)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `
		CREATE TABLE IF NOT EXISTS trips (id uuid PRIMARY KEY, state text NOT NULL DEFAULT 'new', charge text, ticket text, itinerary text);
		CREATE TABLE IF NOT EXISTS seats (no int PRIMARY KEY, trip uuid UNIQUE REFERENCES trips);
		INSERT INTO seats SELECT generate_series(1, 100) ON CONFLICT DO NOTHING`)
	return err
}

func newTrip() saga.NewInstance {
	return saga.NewInstance{ID: uuid.Must(uuid.NewV7()), Lane: "Ada", Definition: "book-trip", Version: 1}
}
