package outboxtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// prove is what a service's own test does: writers that meet on one key, some of which roll back; a relay to a broker
// that fails now and then; and the verdict. Replace the transaction by one of the service's own.
func prove(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	pages := 0
	broker := &outboxtest.Broker{Sending: func([]outbox.Record) error {
		if pages++; pages%3 == 0 {
			return errors.New("every third page fails")
		}
		return nil
	}}
	relay, err := outbox.NewRelay(pool, broker, outbox.RelayOptions{Schema: schema})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- relay.Run(running) }()

	var (
		history outboxtest.History
		writers sync.WaitGroup
	)
	for range 4 {
		writers.Go(func() {
			for n := range 25 {
				msg := outbox.Message{ID: uuid.New(), Topic: "orders", Key: "u-7", Type: "order.placed.v1"}
				changedMind := errors.New("rolled back")
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					if err := (outbox.Writer{Schema: schema}).Write(ctx, tx, msg); err != nil {
						return err
					}
					history.Written(msg)
					if n%5 == 0 {
						return changedMind
					}
					return nil
				})
				switch {
				case err == nil:
					history.Committed(msg)
				case !errors.Is(err, changedMind):
					history.Unknown(msg)
				}
			}
		})
	}
	writers.Wait()
	err = broker.Wait(ctx, history.Complete)
	stop()
	return errors.Join(err, <-done, history.Judge(broker.Records()).Err())
}

// A service proves its own use of the outbox, in a database that has its migrations.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	fmt.Println(prove(ctx, pool, "orders"))
}
