// Package kafkatest gives each test a Kafka of its own: a broker in the test's process that speaks the real protocol.
//
// It has consumer groups, idempotent producers and faults to inject (see [Broker.Cluster]). It has no replication: what a
// test finds out here about acks and lost leaders says nothing about a cluster.
package kafkatest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Partitions is the partition count of the topics that [New] creates.
const Partitions = 12

// Broker is one test's broker. It ends with the test.
type Broker struct {
	// Addrs are the addresses to connect to.
	Addrs []string
	// Cluster gives control over the broker: faults, leaders, groups.
	Cluster *kfake.Cluster
}

// New starts a broker that has the topics, each with [Partitions] partitions. Topics are not created by using them.
func New(t testing.TB, topics ...string) *Broker {
	t.Helper()
	return NewWith(t, []kfake.Opt{kfake.SeedTopics(Partitions, topics...)})
}

// NewWith starts a broker with options, for example more brokers or other partition counts.
func NewWith(t testing.TB, opts []kfake.Opt) *Broker {
	t.Helper()
	defaults := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.GroupMinSessionTimeout(100 * time.Millisecond), // tests of lost members do not want to wait 6 s
	}
	cluster, err := kfake.NewCluster(append(defaults, opts...)...)
	if err != nil {
		t.Fatalf("kafkatest: start the broker: %v", err)
	}
	t.Cleanup(cluster.Close)
	return &Broker{Addrs: cluster.ListenAddrs(), Cluster: cluster}
}

// Client returns a client of the broker, closed when the test ends. Producing to a missing topic fails within a second
// instead of being retried for long.
func (b *Broker) Client(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	defaults := []kgo.Opt{
		kgo.SeedBrokers(b.Addrs...),
		kgo.UnknownTopicRetries(1),
		kgo.MetadataMinAge(10 * time.Millisecond),
	}
	client, err := kgo.NewClient(append(defaults, opts...)...)
	if err != nil {
		t.Fatalf("kafkatest: make a client: %v", err)
	}
	t.Cleanup(client.Close)
	return client
}

// Produce writes records and fails the test unless the broker acknowledged every one.
func (b *Broker) Produce(t testing.TB, records ...*kgo.Record) {
	t.Helper()
	if err := b.Client(t).ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatalf("kafkatest: produce: %v", err)
	}
}

// Read returns the first n records of the topics, from their beginning, each partition in order. It waits for them until
// the test's deadline, 20 s at most.
func (b *Broker) Read(t testing.TB, n int, topics ...string) []*kgo.Record {
	t.Helper()
	client := b.Client(t, kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("kafkatest: read %v: %d of %d records, then %v", topics, len(records), n, err)
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			t.Fatalf("kafkatest: read %s: %v", fmt.Sprintf("%s/%d", topic, partition), err)
		})
		records = append(records, fetches.Records()...)
	}
	return records
}
