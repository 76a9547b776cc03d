package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
)

const (
	partitions  = 12
	messageType = "bench.written.v1"
)

// brokerCommand makes this program a broker: what it costs should not be counted among the consumer's costs.
const brokerCommand = "broker"

// broker runs kfake until ctx ends, after it has printed its addresses.
func broker(ctx context.Context, _ []string) error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		return fmt.Errorf("start the broker: %w", err)
	}
	defer cluster.Close()
	if err := legs.Say(cluster.ListenAddrs()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// load is the records of a topic.
type load struct {
	topic string
	n     int
}

// produce makes a topic and fills it with n messages, whose keys key chooses.
func (b *bench) produce(ctx context.Context, topic string, partitions int32, n int, key func(i int) string) (load, error) {
	p, err := b.newProducer(ctx, topic, partitions)
	if err != nil {
		return load{}, err
	}
	for i := range n {
		p.send(ctx, key(i))
	}
	return load{topic, n}, p.close(ctx)
}

// producer sends messages to a topic of its own.
type producer struct {
	client *kgo.Client
	topic  string
	n      int        // so far
	failed chan error // the first one
}

func (b *bench) newProducer(ctx context.Context, topic string, partitions int32) (*producer, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		return nil, err
	}
	if _, err := kadm.NewClient(client).CreateTopic(ctx, partitions, -1, nil, topic); err != nil {
		client.Close()
		return nil, fmt.Errorf("create topic %s: %w", topic, err)
	}
	return &producer{client: client, topic: topic, failed: make(chan error, 1)}, nil
}

var note = strings.Repeat("abcdefghijklmnopqrstuvwxyz", 8)[:200]

func (p *producer) send(ctx context.Context, key string) {
	p.client.Produce(ctx, &kgo.Record{
		Topic: p.topic, Key: []byte(key), Value: fmt.Appendf(nil, `{"n":%d,"note":"%s"}`, p.n, note),
		Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")},
			{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())},
			{Key: "ce_type", Value: []byte(messageType)},
			{Key: "ce_source", Value: []byte("/bench")},
			{Key: "ce_time", Value: []byte(time.Now().UTC().Format(time.RFC3339Nano))},
			{Key: "content-type", Value: []byte("application/json")},
		},
	}, func(_ *kgo.Record, err error) {
		if err != nil {
			select {
			case p.failed <- err:
			default: // the first one will do
			}
		}
	})
	p.n++
}

// close waits until all is sent.
func (p *producer) close(ctx context.Context) error {
	defer p.client.Close()
	if err := p.client.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-p.failed:
		return fmt.Errorf("produce: %w", err)
	default:
		return nil
	}
}

// committed returns how many records of a load lie below the offsets that group has committed.
func (b *bench) committed(ctx context.Context, adm *kadm.Client, group string, l load) int {
	offsets, err := adm.FetchOffsets(ctx, group)
	if err != nil {
		return 0 // the group does not exist yet
	}
	n := 0
	for _, at := range offsets[l.topic] {
		n += int(max(at.At, 0))
	}
	return n
}
