package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/bench/internal/commitack"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/outbox"
)

// aimedRate is the rate that the aims are for.
const aimedRate = 2000

// latencies measures from commit to ack on Apache Kafka, in an open loop.
func (b *bench) latencies(ctx context.Context) (rows []table.Row, err error) {
	err = b.withKafka(ctx, func(broker *apache) error {
		// A broker that has just started spends its time on compiling itself.
		for range b.warmups {
			if err := b.latency(ctx, broker, aimedRate, false, &times{}); err != nil {
				return err
			}
		}
		for _, rate := range b.rates {
			calm, hostile := &times{}, &times{}
			var worse []float64
			for n := range b.Rounds {
				if err := b.latency(ctx, broker, rate, false, calm); err != nil {
					return err
				}
				if rate != aimedRate {
					continue
				}
				if err := b.latency(ctx, broker, rate, true, hostile); err != nil {
					return err
				}
				worse = append(worse, hostile.p99[n]/calm.p99[n])
			}
			rows = append(rows, calm.rows(fmt.Sprintf("commit → ack at %d/s", rate), rate == aimedRate)...)
			if len(worse) > 0 {
				hurt := table.Median(worse)
				rows = append(rows, hostile.rows(fmt.Sprintf("commit → ack at %d/s, hostile", rate), false)...)
				rows = append(rows, table.Row{Name: fmt.Sprintf("commit → ack at %d/s: p99 times worse when hostile", rate), Value: hurt, Format: "%.2f", Aim: "≤ 1.3", Met: hurt <= 1.3})
			}
		}
		return nil
	})
	return rows, err
}

// times are the figures of each round.
type times struct{ perSec, p50, p99 []float64 }

func (t *times) rows(name string, aimed bool) []table.Row {
	half, most := table.Median(t.p50), table.Median(t.p99)
	rows := []table.Row{
		{Name: name + ": really committed (1/s)", Value: table.Median(t.perSec), Format: "%.0f"},
		{Name: name + ": p50 (ms)", Value: half, Format: "%.1f", Met: half <= 2},
		{Name: name + ": p99 (ms)", Value: most, Format: "%.1f", Met: most <= 15},
	}
	if aimed {
		rows[1].Aim, rows[2].Aim = "≤ 2", "≤ 15"
	}
	return rows
}

// latency measures one round.
func (b *bench) latency(ctx context.Context, broker *apache, rate int, held bool, into *times) error {
	return b.withOutbox(ctx, "latency", func(url string) error {
		if err := broker.empty(ctx); err != nil {
			return err
		}
		if held {
			release, err := hold(ctx, url)
			if err != nil {
				return err
			}
			defer release()
		}
		const writers = 32
		pool, err := pgxpool.New(ctx, fmt.Sprintf("%s&pool_max_conns=%d", url, writers+4))
		if err != nil {
			return err
		}
		defer pool.Close()
		client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(broker.addrs...))...)
		if err != nil {
			return err
		}
		defer client.Close()
		load := commitack.Load{Topic: topic, Schema: schema, PerSec: rate, For: b.loadFor, Writers: writers, Payload: 300}
		r, err := commitack.Measure(ctx, load, pool, outbox.NewKafkaPublisher(client))
		if err != nil {
			return err
		}
		p50, p99 := table.Quantile(r.Millis, 0.50), table.Quantile(r.Millis, 0.99)
		fmt.Printf("latency at %d/s, held open: %t: %.0f/s, p50 %.1f ms, p99 %.1f ms\n", rate, held, r.PerSec, p50, p99)
		into.perSec, into.p50, into.p99 = append(into.perSec, r.PerSec), append(into.p50, p50), append(into.p99, p99)
		return nil
	})
}
