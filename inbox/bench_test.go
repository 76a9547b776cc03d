package inbox_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// BenchmarkConsumer measures dedup and one inserted row for each message, through real Postgres and a broker in the
// process, from the first message handled to the last. The batch handler inserts its rows with one statement.
func BenchmarkConsumer(b *testing.B) {
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprintf("single/batch=%d", size), func(b *testing.B) {
			benchConsumer(b, size, func(r *inbox.Route, applied func(int)) {
				r.Handle = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
					defer applied(1)
					return apply(ctx, tx, m)
				}
			})
		})
		b.Run(fmt.Sprintf("set/batch=%d", size), func(b *testing.B) {
			benchConsumer(b, size, func(r *inbox.Route, applied func(int)) {
				r.HandleBatch = func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
					defer applied(len(msgs))
					return applyAll(ctx, tx, msgs)
				}
			})
		})
	}
}

func applyAll(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
	keys, ids := make([]string, len(msgs)), make([]string, len(msgs))
	for i, m := range msgs {
		keys[i], ids[i] = m.Key, m.ID.String()
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO effects (key, id, seq)
		SELECT key, id::uuid, 0 FROM unnest($1::text[], $2::text[]) AS m (key, id)`, keys, ids)
	return err
}

func benchConsumer(b *testing.B, size int, handle func(*inbox.Route, func(int))) {
	db := newDatabase(b)
	broker := kafkatest.New(b, topic)
	client := broker.Client(b)
	for i := range b.N {
		client.Produce(b.Context(), record(fmt.Sprintf("u%d", i%1000), i, ""), func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := client.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	var first sync.Once
	var started time.Time
	var done atomic.Int64
	all := make(chan struct{})
	route := inbox.Route{Topic: topic, Type: placed}
	handle(&route, func(n int) {
		first.Do(func() { started = time.Now() })
		if done.Add(int64(n)) == int64(b.N) {
			close(all)
		}
	})
	c, err := inbox.NewConsumer(db.Pool, "test", []inbox.Route{route},
		inbox.Options{Kafka: []kgo.Opt{kgo.SeedBrokers(broker.Addrs...)}, BatchSize: size, Workers: 8})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ResetTimer()
	go func() { ended <- c.Run(ctx) }()
	<-all
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(started).Seconds(), "msgs/s")
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}
