package outbox_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/outbox"
)

// fill puts n messages of 300 bytes into the outbox.
func fill(b *testing.B, pool *pgxpool.Pool, n int) {
	b.Helper()
	_, err := pool.Exec(b.Context(), `
		INSERT INTO orders.outbox (id, topic, key, type, content_type, headers, payload)
		SELECT gen_random_uuid(), 'orders', 'user-' || n % 1000, 'order.placed.v1', 'application/json',
			jsonb_build_object('ce_subject', n::text), convert_to(repeat('x', 300), 'UTF8')
		FROM generate_series(1, $1) AS n`, n)
	if err != nil {
		b.Fatal(err)
	}
}

// How fast a backlog is published, to a broker that answers at once, after a millisecond, and to a Kafka in process.
func BenchmarkDrain(b *testing.B) {
	const messages = 200_000
	for _, leg := range []struct {
		name      string
		publisher func(b *testing.B) outbox.Publisher
	}{
		{"at-once", func(*testing.B) outbox.Publisher { return answering(0) }},
		{"after-1ms", func(*testing.B) outbox.Publisher { return answering(time.Millisecond) }},
		{"kafka", func(b *testing.B) outbox.Publisher {
			broker := kafkatest.New(b, "orders")
			client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(broker.Addrs...))...)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(client.Close)
			return outbox.NewKafkaPublisher(client)
		}},
	} {
		b.Run(leg.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				db := newOutbox(b)
				fill(b, db.Pool, messages)
				publisher, done := counted(leg.publisher(b), messages)
				b.StartTimer()
				began := time.Now()
				_, stop := start(b, db.Pool, publisher, outbox.RelayOptions{})
				<-done
				b.ReportMetric(messages/time.Since(began).Seconds(), "msgs/s")
				b.StopTimer()
				stop()
				b.StartTimer()
			}
		})
	}
}

// answering is a broker that keeps nothing and answers after a delay.
func answering(delay time.Duration) outbox.Publisher {
	return publisherFunc(func(context.Context, []outbox.Record) []error {
		if delay > 0 {
			<-time.After(delay)
		}
		return nil
	})
}

// counted closes done when p has acknowledged n records.
func counted(p outbox.Publisher, n int64) (_ outbox.Publisher, done <-chan struct{}) {
	var count atomic.Int64
	enough := make(chan struct{})
	return publisherFunc(func(ctx context.Context, page []outbox.Record) []error {
		errs := p.Publish(ctx, page)
		for i := range page {
			if (errs == nil || errs[i] == nil) && count.Add(1) == n {
				close(enough)
			}
		}
		return errs
	}), enough
}

// What Write costs beside an INSERT of the same bytes by hand.
func BenchmarkWrite(b *testing.B) {
	payload := make([]byte, 300)
	for _, leg := range []struct {
		name  string
		write func(ctx context.Context, tx pgx.Tx, n int) error
	}{
		{"bare-insert", func(ctx context.Context, tx pgx.Tx, n int) error {
			_, err := tx.Exec(ctx, `
				INSERT INTO orders.outbox (id, topic, key, type, content_type, headers, payload)
				VALUES (gen_random_uuid(), 'orders', $1, 'order.placed.v1', 'application/json', '{}', $2)`,
				fmt.Sprint("user-", n), payload)
			return err
		}},
		{"write", func(ctx context.Context, tx pgx.Tx, n int) error {
			return outbox.Writer{Schema: schema}.Write(ctx, tx, outbox.Message{
				Topic: "orders", Key: fmt.Sprint("user-", n), Type: "order.placed.v1", Payload: payload,
			})
		}},
		{"write-no-lock", func(ctx context.Context, tx pgx.Tx, n int) error {
			return outbox.Writer{Schema: schema, NoKeyLock: true}.Write(ctx, tx, outbox.Message{
				Topic: "orders", Key: fmt.Sprint("user-", n), Type: "order.placed.v1", Payload: payload,
			})
		}},
	} {
		b.Run(leg.name, func(b *testing.B) {
			db := newOutbox(b)
			n := 0
			for b.Loop() {
				n++
				if err := pgx.BeginFunc(b.Context(), db.Pool, func(tx pgx.Tx) error {
					return leg.write(b.Context(), tx, n)
				}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "tx/s")
		})
	}
}

// A poll that finds nothing, with an empty ring and with a full one that nobody has analysed.
func BenchmarkPoll(b *testing.B) {
	for _, rows := range []int{0, 500_000} {
		b.Run(fmt.Sprint(rows, "-rows"), func(b *testing.B) {
			db := newOutbox(b)
			if rows > 0 {
				fill(b, db.Pool, rows)
			}
			var prev string
			if err := db.Pool.QueryRow(b.Context(), `SELECT pg_current_snapshot()::text`).Scan(&prev); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := db.Pool.Exec(b.Context(), `SELECT * FROM orders.outbox_poll($1::text::pg_snapshot)`, prev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// publisherFunc is a function that is a publisher.
type publisherFunc func(context.Context, []outbox.Record) []error

func (f publisherFunc) Publish(ctx context.Context, page []outbox.Record) []error {
	return f(ctx, page)
}
