// Package kafkatest gives each test a Kafka to itself.
//
// By default that is kfake: a broker in the test's process that speaks the real protocol and starts in a millisecond. It has
// consumer groups and idempotent producers, and no replication: what a test finds out on it about acks and lost leaders says
// nothing about a cluster.
//
// With $ORDERFLOW_TEST_KAFKA set, [New] gives the test Apache Kafka instead: one of the clusters named there, which it has
// wiped and which no other test gets before this one has ended. `make test-kafka` runs the suites that way. A test that
// makes the broker misbehave can do so on kfake only, and says so by calling [NewFake].
package kafkatest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Partitions is the partition count of the topics that [New] creates.
const Partitions = 12

// Attribute is the name under which a test's log says what it ran on: [OnKafka] or [OnKfake].
const Attribute = "kafka"

// The values of [Attribute].
const (
	OnKafka = "apache"
	OnKfake = "kfake"
)

// Broker is what one test has of Kafka. It ends with the test.
type Broker struct {
	// Addrs are the addresses to connect to.
	Addrs []string
	// Apache is false for a kfake.
	Apache bool
}

// New returns a Kafka that has the topics, each with [Partitions] partitions, and nothing else: no other topic, no group.
// Topics are not created by using them. A test calls it once: on Apache Kafka a second call could wait for the first's end.
func New(t testing.TB, topics ...string) *Broker {
	t.Helper()
	if b := Apache(t); b != nil {
		if len(topics) > 0 {
			b.Create(t, Partitions, nil, topics...)
		}
		return b
	}
	// Named like no kfake, which services refuse to work on.
	return NewFake(t, kfake.SeedTopics(Partitions, topics...), kfake.ClusterID("kafkatest")).Broker
}

// Fake is a kfake, whatever other tests run on.
type Fake struct {
	*Broker
	// Cluster gives control over the broker: faults, leaders, groups.
	Cluster *kfake.Cluster
}

// NewFake starts a kfake with options, for example more brokers. It is for tests that need it by their nature: those that
// inject a fault, or are about kfake. docs/kfake.md lists them; `make test-kafka` fails for one that is not listed there.
func NewFake(t testing.TB, opts ...kfake.Opt) *Fake {
	t.Helper()
	defaults := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.GroupMinSessionTimeout(minSessionTimeout),
	}
	cluster, err := kfake.NewCluster(append(defaults, opts...)...)
	if err != nil {
		t.Fatalf("kafkatest: start the broker: %v", err)
	}
	t.Cleanup(cluster.Close)
	t.Attr(Attribute, OnKfake)
	return &Fake{Broker: &Broker{Addrs: cluster.ListenAddrs()}, Cluster: cluster}
}

// minSessionTimeout lets tests of lost members choose not to wait 6 s.
const minSessionTimeout = 100 * time.Millisecond

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

// Create creates topics, each with as many partitions and the settings, and waits until clients can use them.
func (b *Broker) Create(t testing.TB, partitions int32, configs map[string]string, topics ...string) {
	t.Helper()
	settings := map[string]*string{}
	for name, value := range configs {
		settings[name] = &value
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := b.connect(t)
	defer client.Close()
	admin := kadm.NewClient(client)
	responses, err := admin.CreateTopics(ctx, partitions, -1, settings, topics...)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		t.Fatalf("kafkatest: create %v: %v", topics, err)
	}
	// Kafka answers before the broker has heard of the new topic from the controller.
	await(ctx, t, fmt.Sprintf("use the new topics %v", topics), func() error {
		details, err := admin.ListTopics(ctx, topics...)
		if err != nil {
			return err
		}
		for _, topic := range details {
			if topic.Err != nil {
				return topic.Err
			}
			for _, p := range topic.Partitions {
				if p.Err != nil {
					return p.Err
				}
			}
		}
		return nil
	})
}

// patience is how long anything here may take on a busy machine.
const patience = time.Minute

// connect returns a client that the caller closes: a test that counts goroutines should not find it.
func (b *Broker) connect(t testing.TB) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatalf("kafkatest: make a client: %v", err)
	}
	return client
}

// await calls check until it returns nil.
func await(ctx context.Context, t testing.TB, what string, check func() error) {
	t.Helper()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("kafkatest: %s: %v", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
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
