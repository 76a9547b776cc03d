package outboxtest_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// The verdict counts what is wrong, and shows what was seen of each message.
func ExampleHistory() {
	message := func(n byte) outbox.Message {
		return outbox.Message{ID: uuid.UUID{15: n}, Topic: "orders", Key: "u-7"}
	}
	var history outboxtest.History
	for n := byte(1); n <= 3; n++ {
		history.Written(message(n))
		history.Committed(message(n))
	}
	verdict := history.Judge([]outbox.Record{{ID: message(2).ID}, {ID: message(1).ID}, {ID: message(1).ID}})
	fmt.Println(verdict.Err())
	fmt.Println(verdict.Duplicates, "duplicate")
	// Output:
	// history: 1 lost, 1 out of order
	// lost: 00000000-0000-0000-0000-000000000003 of orders/u-7: written at 5, committed at 6, never arrived
	// out of order: 00000000-0000-0000-0000-000000000001 of orders/u-7: written at 1, committed at 2, arrived at [1 2], behind 00000000-0000-0000-0000-000000000002 of orders/u-7: written at 3, committed at 4, arrived at [0]
	// 1 duplicate
}

// Like Kafka, the broker refuses a batch for one of its records. A relay then sends them one by one, to find which.
func ExampleBroker() {
	broker := &outboxtest.Broker{
		Partitions: 1,
		Refuse:     func(r outbox.Record) bool { return len(r.Value) > 5 },
	}
	page := []outbox.Record{{Topic: "orders", Key: "a", Value: []byte("short")}, {Topic: "orders", Key: "b", Value: []byte("too long")}}
	for i, err := range broker.Publish(context.Background(), page) {
		fmt.Println(page[i].Key, errors.Is(err, outbox.ErrRefused))
	}
	fmt.Println("alone:", broker.Publish(context.Background(), page[:1]), len(broker.Records()))
	// Output:
	// a true
	// b true
	// alone: [] 1
}
