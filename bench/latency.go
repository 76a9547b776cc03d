package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/bench/internal/commitack"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/outbox"
)

// latencyLeg measures from commit to ack with a broker in the process; make bench-outbox does it on Apache Kafka.
func latencyLeg(ctx context.Context, p plan, server *postgres) ([]table.Row, error) {
	fmt.Printf("latency: %d messages a second for %v\n", p.perSec, p.latency)
	url, err := server.database(ctx, "latency")
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(12, "orders"))
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(cluster.ListenAddrs()...))...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	load := commitack.Load{Topic: "orders", Schema: "orders", PerSec: p.perSec, For: p.latency, Writers: 8, Payload: 350}
	r, err := commitack.Measure(ctx, load, pool, outbox.NewKafkaPublisher(client))
	if err != nil {
		return nil, err
	}
	p50, p99 := table.Quantile(r.Millis, 0.50), table.Quantile(r.Millis, 0.99)
	rate := fmt.Sprintf("commit → ack at %d/s", p.perSec)
	return []table.Row{
		{Name: rate + ", p50 (ms)", Value: p50, Format: "%.1f"},
		{Name: rate + ", p99 (ms)", Value: p99, Format: "%.1f", Aim: "≤ 25", Met: p99 <= 25},
	}, nil
}
