package inbox_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// BenchmarkConsumer measures dedup and one insert for each message, through real Postgres and a broker in the process.
func BenchmarkConsumer(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) { benchConsumer(b, size) })
	}
}

func benchConsumer(b *testing.B, size int) {
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
	var done atomic.Int64
	all := make(chan struct{})
	c, err := inbox.NewConsumer(db.Pool, "test", []inbox.Route{{Topic: topic, Type: placed, Handle: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		err := apply(ctx, tx, m)
		if err == nil && done.Add(1) == int64(b.N) {
			close(all)
		}
		return err
	}}}, inbox.Options{Kafka: []kgo.Opt{kgo.SeedBrokers(broker.Addrs...)}, BatchSize: size, Workers: 8})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ResetTimer()
	go func() { ended <- c.Run(ctx) }()
	<-all
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}
