package main

import (
	"context"
	"fmt"
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
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		return load{}, err
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, partitions, -1, nil, topic); err != nil {
		return load{}, fmt.Errorf("create topic %s: %w", topic, err)
	}
	note := make([]byte, 200)
	for i := range note {
		note[i] = 'a' + byte(i%26)
	}
	results := make(chan error, 1)
	for i := range n {
		client.Produce(ctx, &kgo.Record{
			Topic: topic, Key: []byte(key(i)), Value: fmt.Appendf(nil, `{"n":%d,"note":"%s"}`, i, note),
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
				case results <- err:
				default: // the first one will do
				}
			}
		})
	}
	if err := client.Flush(ctx); err != nil {
		return load{}, err
	}
	select {
	case err := <-results:
		return load{}, fmt.Errorf("produce: %w", err)
	default:
		return load{topic, n}, nil
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
