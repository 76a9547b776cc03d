// Inbox counts the greetings that the example of package outbox publishes, each of them once, until Ctrl-C:
//
//	make build && bin/orderflow dev --ephemeral --ready-file /tmp/parts.json    # then, in another shell:
//	DATABASE_URL=$(jq -r .postgres /tmp/parts.json) KAFKA=$(jq -r .kafka /tmp/parts.json) go run ./examples/inbox
package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/outbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Getenv("DATABASE_URL"), os.Getenv("KAFKA")); err != nil {
		slog.Error("example ends", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, databaseURL, kafka string) error {
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	// Copies of dead letters leave through an outbox. Its migrations have the table that examples/outbox keeps.
	for table, files := range map[string]fs.FS{"goose_db_version": outbox.Migrations(), "inbox_migrations": inbox.Migrations()} {
		db := stdlib.OpenDBFromPool(pool)
		if p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(table)); err != nil {
			return err
		} else if _, err = p.Up(ctx); errors.Join(err, db.Close()) != nil {
			return err
		}
	}
	_, noTable := pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS counts (name text PRIMARY KEY, greetings int NOT NULL)`)
	count := func(ctx context.Context, tx pgx.Tx, e inbox.Event[string]) error { // what tx writes is there once, whatever happens
		_, err := tx.Exec(ctx, `INSERT INTO counts VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET greetings = counts.greetings + 1`, e.Key)
		return err
	}
	consumer, noConsumer := inbox.NewConsumer(pool, "counter", []inbox.Route{inbox.Typed("greetings", "greeting.said.v1", count)},
		inbox.Options{Kafka: []kgo.Opt{kgo.SeedBrokers(kafka)}, Log: slog.Default()})
	if err := errors.Join(noTable, noConsumer); err != nil {
		return err
	}
	return consumer.Run(ctx) // as many consumers as the topic has partitions
}
