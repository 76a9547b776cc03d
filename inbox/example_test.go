package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// A consumer that ships completed orders. The shipment, the row that remembers the message and what ship writes to the
// outbox commit together.
func ExampleConsumer() {
	run := func(ctx context.Context) error {
		pool, err := pgxpool.New(ctx, "postgres://warehouse@localhost/orderflow")
		if err != nil {
			return err
		}
		defer pool.Close()

		type completed struct {
			OrderID string `json:"order_id"`
		}
		ship := func(ctx context.Context, tx pgx.Tx, e inbox.Event[completed]) error {
			_, err := tx.Exec(ctx, `INSERT INTO shipments (order_id) VALUES ($1)`, e.Data.OrderID)
			return err
		}
		consumer, err := inbox.NewConsumer(pool, "warehouse", []inbox.Route{
			inbox.Typed("orders.completed", "order.completed.v1", ship),
		}, inbox.Options{Kafka: []kgo.Opt{kgo.SeedBrokers("localhost:9092")}})
		if err != nil {
			return err
		}
		return consumer.Run(ctx)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Println(err)
	}
}

// What a handler's error says about the message.
func ExamplePermanentAs() {
	charge := func(amount int) error {
		switch {
		case amount < 0:
			return inbox.PermanentAs("business_invalid", errors.New("amount is negative")) // dead at once
		case amount == 0:
			return inbox.Discard("nothing to charge") // done with it
		}
		return nil
	}
	fmt.Println(charge(-1))
	fmt.Println(charge(0))
	fmt.Println(charge(5))
	// Output:
	// amount is negative
	// nothing to charge
	// <nil>
}

// A batch handler adds up what its messages change in shared rows, and writes them once, sorted, last.
func ExampleBatchHandler() {
	var count inbox.BatchHandler = func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
		sold := map[string]int64{}
		for _, msg := range msgs {
			sold[msg.Subject]++
		}
		skus, counts := make([]string, 0, len(sold)), make([]int64, 0, len(sold))
		for sku, n := range sold {
			skus, counts = append(skus, sku), append(counts, n)
		}
		_, err := tx.Exec(ctx, `
			UPDATE stock SET sold = sold + s.n
			FROM (SELECT * FROM unnest($1::text[], $2::bigint[]) AS u (sku, n) ORDER BY sku) s
			WHERE stock.sku = s.sku`, skus, counts)
		return err
	}
	_ = inbox.Route{Topic: "orders", Type: "order.placed.v1", HandleBatch: count}
}

// One handler reads what is written today and what was written before the total had a currency.
func ExampleTyped() {
	type v1 struct {
		Cents int64 `json:"cents"`
	}
	type v2 struct {
		Amount   int64  `json:"amount"`
		Currency string `json:"currency"`
	}
	route := inbox.Typed("orders", "order.placed.v2", func(_ context.Context, _ pgx.Tx, e inbox.Event[v2]) error {
		fmt.Println(e.Type, "of", e.Data.Amount, e.Data.Currency)
		return nil
	}, inbox.Upcast("order.placed.v1", func(old v1) (v2, error) {
		return v2{Amount: old.Cents, Currency: "EUR"}, nil
	}))

	// A consumer does this for each message:
	for _, msg := range []inbox.Message{
		{Type: "order.placed.v1", Payload: []byte(`{"cents": 995}`)},
		{Type: "order.placed.v2", Payload: []byte(`{"amount": 1200, "currency": "JPY", "gift": true}`)},
		{Type: "order.placed.v2", Payload: []byte(`{"amount": "many"}`)},
	} {
		if err := route.Handle(context.Background(), nil, msg); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// order.placed.v1 of 995 EUR
	// order.placed.v2 of 1200 JPY
	// decode order.placed.v2: json: cannot unmarshal string into Go struct field v2.amount of type int64
}

// An operator hands the dead letters of one key back once their cause is mended.
func ExampleReplay() {
	replay := func(ctx context.Context, pool *pgxpool.Pool) error {
		n, err := inbox.Replay(ctx, pool, inbox.Filter{Group: "warehouse", Key: "user-7"}, "alice")
		if err != nil {
			return err
		}
		fmt.Println(n, "messages will be tried again, in order")
		return nil
	}
	_ = replay
}
