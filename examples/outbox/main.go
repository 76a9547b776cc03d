// Outbox commits a row and a message in one transaction, and relays the message to topic greetings until Ctrl-C:
//
//	make build && bin/orderflow dev --ephemeral --ready-file /tmp/parts.json    # then, in another shell:
//	DATABASE_URL=$(jq -r .postgres /tmp/parts.json) KAFKA=$(jq -r .kafka /tmp/parts.json) go run ./examples/outbox
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

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
	client, noClient := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(kafka))...)
	relay, noRelay := outbox.NewRelay(pool, outbox.NewKafkaPublisher(client), outbox.RelayOptions{Log: slog.Default()})
	goose.SetBaseFS(outbox.Migrations())
	db := stdlib.OpenDBFromPool(pool)
	if err := errors.Join(noClient, noRelay, goose.UpContext(ctx, db, "."), db.Close()); err != nil {
		return err
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopics(ctx, 12, -1, nil, "greetings"); err != nil {
		return err
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { // the row and the message: both are there, or neither is
		if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS greetings (name text); INSERT INTO greetings VALUES ('Ada')`); err != nil {
			return err
		}
		return outbox.Write(ctx, tx, outbox.Message{Topic: "greetings", Key: "Ada", Type: "greeting.said.v1", Payload: []byte(`"hi"`)})
	}); err != nil {
		return err
	}
	return relay.Run(ctx) // as many relays as you like: one leads
}
