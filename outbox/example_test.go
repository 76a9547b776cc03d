package outbox_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/outbox"
)

// OrderPlaced is an event of the shop in these examples.
type OrderPlaced struct {
	OrderID string `json:"order_id"`
	UserID  string `json:"user_id"`
}

func (OrderPlaced) Topic() string     { return "orders" }
func (e OrderPlaced) Key() string     { return e.UserID }
func (OrderPlaced) Type() string      { return "order.placed.v1" }
func (e OrderPlaced) Subject() string { return e.OrderID }

func ExampleJSON() {
	msg, err := outbox.JSON(OrderPlaced{OrderID: "o-1", UserID: "u-7"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(msg.Topic, msg.Key, msg.Type, msg.Subject)
	fmt.Printf("%s\n", msg.Payload)
	// Output:
	// orders u-7 order.placed.v1 o-1
	// {"order_id":"o-1","user_id":"u-7"}
}

// A message is written in the transaction of the rows that it is about: both are there, or neither is.
func ExampleWrite() {
	placeOrder := func(ctx context.Context, pool *pgxpool.Pool, e OrderPlaced) error {
		msg, err := outbox.JSON(e)
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO orders (id, user_id) VALUES ($1, $2)`, e.OrderID, e.UserID); err != nil {
				return fmt.Errorf("insert order %s: %w", e.OrderID, err)
			}
			return outbox.Write(ctx, tx, msg)
		})
	}
	_ = placeOrder
}

// A relay to Kafka. Start as many as you like: one leads, the others stand by.
func ExampleRelay_Run() {
	run := func(ctx context.Context, pool *pgxpool.Pool, brokers ...string) error {
		client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(brokers...))...)
		if err != nil {
			return fmt.Errorf("make kafka client: %w", err)
		}
		defer client.Close()
		relay, err := outbox.NewRelay(pool, outbox.NewKafkaPublisher(client), outbox.RelayOptions{
			Source: "/shop",
			Log:    slog.Default(),
		})
		if err != nil {
			return err
		}
		return relay.Run(ctx)
	}
	_ = run
}
