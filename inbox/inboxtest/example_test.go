package inboxtest_test

import (
	"context"
	"fmt"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/inbox/inboxtest"
)

// prove is what a service's own test does, in a database that has its tables and the migrations of inbox and outbox. Replace
// the route by the service's own, and the query by one of its tables.
func prove(ctx context.Context, pool *pgxpool.Pool, route inbox.Route) error {
	var messages []inbox.Message
	for n := range 120 {
		key := fmt.Sprintf("user-%d", n%15)
		messages = append(messages, inbox.Message{Topic: route.Topic, Key: key, Type: route.Type, Payload: fmt.Appendf(nil, `{"n": %d}`, n)})
	}
	trial := inboxtest.Trial{Pool: pool, Routes: []inbox.Route{route}, Messages: messages}
	sent, _, err := trial.Run(ctx)
	if err != nil {
		return err
	}
	rows, _ := pool.Query(ctx, `SELECT id, 'orders', user_id FROM shipments ORDER BY number`) // CollectRows reports the error
	effects, err := pgx.CollectRows(rows, pgx.RowToStructByPos[inboxtest.Effect])
	if err != nil {
		return err
	}
	return inboxtest.Judge(sent, effects).Err()
}

// A service proves that its handler ships once, and each user's orders in order.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	ship := inbox.Typed("orders", "order.completed.v1", func(ctx context.Context, tx pgx.Tx, e inbox.Event[struct{}]) error {
		_, err := tx.Exec(ctx, `INSERT INTO shipments (id, user_id) VALUES ($1, $2)`, e.ID, e.Key)
		return err
	})
	fmt.Println(prove(ctx, pool, ship))
}

// The verdict counts what is wrong and names the first of each kind.
func ExampleJudge() {
	id := func(n byte) uuid.UUID { return uuid.UUID{15: n} }
	sent := []inbox.Message{{ID: id(1), Topic: "orders", Key: "ann"}, {ID: id(2), Topic: "orders", Key: "ann"}, {ID: id(3), Topic: "orders", Key: "bob"}}
	effects := []inboxtest.Effect{{id(2), "orders", "ann"}, {id(2), "orders", "ann"}, {id(1), "orders", "ann"}}
	fmt.Println(inboxtest.Judge(sent, effects).Err())
	// Output:
	// effects: 1 lost, the first is 00000000-0000-0000-0000-000000000003 of orders/bob; 1 repeated, the first is 00000000-0000-0000-0000-000000000002 of orders/ann; 1 out of order, the first is 00000000-0000-0000-0000-000000000001 of orders/ann
}
