package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// batchBytes is the most that one batch may take, before compression. It must not exceed the max.message.bytes of any
// topic, which is 1,048,588 by default: Kafka refuses batches, not records, so a batch above it fails messages that
// have done nothing wrong.
const batchBytes = 1_000_012

// errNotSent says that a record was kept back because an earlier one of its partition had failed.
var errNotSent = errors.New("not sent, an earlier record of its partition failed")

// KafkaOptions are the producer's settings that a [KafkaPublisher] relies on. Add seed brokers, TLS and the like.
func KafkaOptions() []kgo.Opt {
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchMaxBytes(batchBytes),
		kgo.RecordPartitioner(partitioner),
		// The publisher decides what goes into a batch: everything that is buffered when it flushes.
		kgo.ManualFlushing(),
		kgo.MaxBufferedRecords(1 << 20),
		// A page must be over when the lease is, acknowledged or not. What is cancelled is sent again by whoever leads
		// then, and consumers drop what arrived twice.
		kgo.AllowIdempotentProduceCancellation(),
		// That a topic is unknown must be known before a page's time is over. How often that makes it missing is the
		// publisher's to say.
		kgo.UnknownTopicRetries(2),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}
}

// partitioner is the one of Kafka's own clients for records with a key.
var partitioner = kgo.StickyKeyPartitioner(nil)

// KafkaPublisher is the [Publisher] for Kafka.
type KafkaPublisher struct {
	client *kgo.Client
	turn   chan struct{} // one page at a time; it guards what follows
	topics map[string]*topicLayout
	absent absences
}

// topicLayout says where the records of a topic go. It only decides what is sent together.
type topicLayout struct {
	proven      bool // the client has sent to it, so it knows the topic
	partitions  int
	read        time.Time
	partitioner kgo.TopicPartitioner
}

// NewKafkaPublisher returns a publisher through client, which must have been made with [KafkaOptions] and which nobody
// else may produce with. The caller closes client after the relays have returned. Relays that share a publisher take
// turns.
//
// A topic that Kafka does not know is trouble to wait out for 15 s, and holds up what is behind it; then its records are
// refused until Kafka knows it.
func NewKafkaPublisher(client *kgo.Client) *KafkaPublisher {
	return &KafkaPublisher{
		client: client, turn: make(chan struct{}, 1), topics: map[string]*topicLayout{},
		absent: absences{limit: unknownTopicAfter, topics: map[string]absence{}},
	}
}

// Publish sends page in rounds of at most one batch for each partition. When a batch fails, nothing later has been
// sent.
func (p *KafkaPublisher) Publish(ctx context.Context, page []Record) []error {
	errs := make([]error, len(page))
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		for i := range errs {
			errs[i] = ctx.Err()
		}
		return errs
	}
	records := kafkaRecords(page)
	failed := false
	for _, round := range p.rounds(ctx, page, records) {
		if failed {
			for _, i := range round {
				errs[i] = errNotSent
			}
			continue
		}
		failed = p.send(ctx, records, round, errs)
	}
	if !failed {
		return nil
	}
	return errs
}

func kafkaRecords(page []Record) []kgo.Record {
	records := make([]kgo.Record, len(page))
	for i := range page {
		r := &page[i]
		records[i] = kgo.Record{
			Topic: r.Topic, Key: []byte(r.Key), Value: r.Value, Headers: r.Headers, Timestamp: r.CreatedAt,
		}
	}
	return records
}

// rounds splits a page so that what a round sends to one partition is one batch. Order within a partition is kept. The
// first record of a topic that the client may not know goes alone: such a client hands records on one by one when it
// learns of the topic, and sends a batch while the rest is still to come.
func (p *KafkaPublisher) rounds(ctx context.Context, page []Record, records []kgo.Record) [][]int {
	type partition struct {
		topic  string
		number int
	}
	type filling struct{ round, bytes int }
	var (
		rounds [][]int
		fill   = map[partition]filling{}
		opened = map[string]bool{} // topics with a record in the first round
	)
	const overhead = 100 // of a batch
	for i := range page {
		to := partition{page[i].Topic, p.partition(ctx, &records[i])}
		at, begun := fill[to]
		size := page[i].bytes()
		if opened[to.topic] && at.round == 0 && !p.topics[to.topic].proven {
			at, begun = filling{round: 1}, false
		}
		opened[to.topic] = true
		if begun && overhead+at.bytes+size > batchBytes {
			at = filling{round: at.round + 1}
		}
		at.bytes += size
		fill[to] = at
		if at.round == len(rounds) {
			rounds = append(rounds, make([]int, 0, len(page)-i))
		}
		rounds[at.round] = append(rounds[at.round], i)
	}
	return rounds
}

// partition is where the client will send record. A topic whose partitions are not known counts as one.
func (p *KafkaPublisher) partition(ctx context.Context, record *kgo.Record) int {
	const fresh = 10 * time.Second
	layout := p.topics[record.Topic]
	if layout == nil {
		layout = &topicLayout{partitioner: partitioner.ForTopic(record.Topic)}
		p.topics[record.Topic] = layout
	}
	if time.Since(layout.read) > fresh {
		layout.partitions = p.countPartitions(ctx, record.Topic)
		layout.read = time.Now()
	}
	if layout.partitions < 2 {
		return 0
	}
	return layout.partitioner.Partition(record, layout.partitions)
}

func (p *KafkaPublisher) countPartitions(ctx context.Context, topic string) int {
	request := kmsg.NewPtrMetadataRequest()
	of := kmsg.NewMetadataRequestTopic()
	of.Topic = kmsg.StringPtr(topic)
	request.Topics = append(request.Topics, of)
	answer, err := p.client.RequestCachedMetadata(ctx, request, time.Minute)
	if err != nil || len(answer.Topics) != 1 || answer.Topics[0].ErrorCode != 0 {
		return 0
	}
	return len(answer.Topics[0].Partitions)
}

// send produces one round, waits until each record is acknowledged or has failed, and reports whether any has.
func (p *KafkaPublisher) send(ctx context.Context, records []kgo.Record, round []int, errs []error) bool {
	var (
		sent   sync.WaitGroup
		failed atomic.Bool
	)
	sent.Add(len(round))
	for _, i := range round {
		p.client.Produce(ctx, &records[i], func(_ *kgo.Record, err error) {
			defer sent.Done()
			if err != nil {
				errs[i] = err
				failed.Store(true)
			}
		})
	}
	// The promises say what came of each record, also when ctx ends first. The client keeps those promises only while it is
	// flushed, and fails the records of a context that has ended as soon as it looks at them.
	if p.client.Flush(ctx) != nil {
		_ = p.client.Flush(context.WithoutCancel(ctx))
	}
	sent.Wait()
	p.classify(records, round, errs)
	return failed.Load()
}

// refusals are the answers by which Kafka refuses a record itself, or its topic, whenever it is sent.
var refusals = []error{
	kerr.MessageTooLarge,
	kerr.RecordListTooLarge,
	kerr.InvalidRecord,
	kerr.InvalidTimestamp,
	kerr.InvalidTopicException,
	kerr.UnsupportedForMessageFormat,
}

// classify marks the errors of a round that sending again cannot mend.
func (p *KafkaPublisher) classify(records []kgo.Record, round []int, errs []error) {
	now := time.Now()
	missing := map[string]bool{} // true when it has lasted
	for _, i := range round {
		topic := records[i].Topic
		if _, noted := missing[topic]; !noted && unknownTopic(errs[i]) {
			missing[topic] = p.absent.unknown(topic, now)
			p.topics[topic].proven = false
		}
	}
	for _, i := range round {
		topic := records[i].Topic
		lasted, noted := missing[topic]
		switch {
		case errs[i] == nil && !noted:
			p.absent.found(topic)
			p.topics[topic].proven = true
		case errs[i] != nil && topic == "", // which the client refuses, by an error without a name
			lasted && unknownTopic(errs[i]),
			slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(errs[i], r) }):
			errs[i] = fmt.Errorf("%w: %w", ErrRefused, errs[i])
		}
	}
}

func unknownTopic(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID)
}
