package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// withKafka starts a broker of Apache Kafka and hands it to use.
func (b *bench) withKafka(ctx context.Context, use func(*apache) error) error {
	cluster, err := localkafka.Start(ctx, localkafka.Options{DataDir: filepath.Join(b.Server.Dir, "kafka"), HeapMB: 1024, Optimize: true})
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Addrs()...), kgo.MetadataMinAge(20*time.Millisecond))
	if err == nil {
		err = use(&apache{cluster.Addrs(), kadm.NewClient(client)})
		client.Close()
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return errors.Join(err, cluster.Stop(stopping))
}

// apache is a running Apache Kafka.
type apache struct {
	addrs []string
	admin *kadm.Client
}

// empty makes the topic anew.
func (a *apache) empty(ctx context.Context) error {
	if _, err := a.admin.DeleteTopics(ctx, topic); err != nil {
		return err
	}
	for {
		created, err := a.admin.CreateTopic(ctx, partitions, 1, nil, topic)
		if err == nil {
			return nil
		}
		// The old topic goes a moment after the answer.
		if created.Err == nil || ctx.Err() != nil {
			return fmt.Errorf("create topic: %w", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// records returns how many records the topic has.
func (a *apache) records(ctx context.Context) (n int, err error) {
	ends, err := a.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	ends.Each(func(o kadm.ListedOffset) { n += int(o.Offset) })
	return n, ends.Error()
}

// watched measures from the first look that finds some records until want are there.
func (a *apache) watched(ctx context.Context, want int) (drained, error) {
	const patience = 3 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var began time.Time
	first := 0
	for {
		n, err := a.records(ctx)
		if err != nil {
			return drained{}, fmt.Errorf("watch the topic: %d of %d records: %w", n, want, err)
		}
		if first == 0 && n > 0 {
			first, began = n, time.Now()
		}
		if n >= want {
			return drained{Messages: n - first, Seconds: time.Since(began).Seconds()}, nil
		}
		<-time.After(5 * time.Millisecond)
	}
}

// kafka measures how fast a backlog goes to Apache Kafka, with a relay and with Kafka Connect.
func (b *bench) kafka(ctx context.Context) (rows []table.Row, err error) {
	err = b.withKafka(ctx, func(broker *apache) error {
		worker, err := startDebezium(ctx, filepath.Join(b.Server.Dir, "connect"), broker.addrs)
		if err != nil {
			return err
		}
		defer worker.stop() //nolint:contextcheck // it stops what was started also when ctx has ended
		return b.withBacklog(ctx, "kafka", func(url string) error {
			rows, err = b.drainToKafka(ctx, broker, worker, url)
			return err
		})
	})
	return rows, err
}

func (b *bench) drainToKafka(ctx context.Context, broker *apache, worker *debezium, url string) ([]table.Row, error) {
	var ours, theirs, ratios []float64
	for n := range b.Rounds {
		our, err := b.kafkaRelay(ctx, broker, url, n)
		if err != nil {
			return nil, err
		}
		their, err := b.kafkaDebezium(ctx, broker, worker, n)
		if err != nil {
			return nil, err
		}
		ours, theirs, ratios = append(ours, our.perSec()), append(theirs, their.perSec()), append(ratios, our.perSec()/their.perSec())
		fmt.Printf("drain to Apache Kafka, round %d: relay %.0f msg/s with %.0f MiB, debezium %.0f\n", n+1, ours[n], our.RSSMiB, theirs[n])
	}
	ratio := table.Median(ratios)
	return []table.Row{
		{Name: "drain to Apache Kafka: relay (msg/s)", Value: table.Median(ours), Format: "%.0f"},
		{Name: "drain to Apache Kafka: Debezium in Kafka Connect (msg/s)", Value: table.Median(theirs), Format: "%.0f"},
		{Name: "drain to Apache Kafka: relay ÷ Debezium", Value: ratio, Format: "%.1f", Aim: "≥ 3", Met: ratio >= 3},
	}, nil
}

func (b *bench) kafkaRelay(ctx context.Context, broker *apache, url string, round int) (drained, error) {
	if err := broker.empty(ctx); err != nil {
		return drained{}, err
	}
	d, err := b.runRelay(ctx, url, fmt.Sprint("round ", round), broker.addrs)
	if err != nil {
		return drained{}, err
	}
	n, err := broker.records(ctx)
	if err == nil && n != b.backlog {
		err = fmt.Errorf("the topic has %d records for %d messages", n, b.backlog)
	}
	return d, err
}

// kafkaDebezium has a worker that is warm drain a backlog that its replication slot has kept.
func (b *bench) kafkaDebezium(ctx context.Context, broker *apache, worker *debezium, round int) (d drained, err error) {
	err = b.withOutbox(ctx, "debezium", func(url string) error {
		name := fmt.Sprintf("outbox-%d", round)
		if err := broker.empty(ctx); err != nil {
			return err
		}
		if err := worker.prepare(ctx, url); err != nil {
			return err
		}
		if err := fill(ctx, url, b.backlog); err != nil {
			return err
		}
		if err := worker.create(ctx, name, url); err != nil {
			return err
		}
		d, err = broker.watched(ctx, b.backlog)
		return errors.Join(err, worker.remove(ctx, name, url))
	})
	return d, err
}
