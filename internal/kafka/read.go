package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Span is a part of a partition to be read: at most Most records with offsets from From on and below To.
type Span struct {
	Topic     string
	Partition int32
	From, To  int64
	Most      int
}

type topicPartition struct {
	topic     string
	partition int32
}

// Read passes the records of spans, one of a partition at most, to each, those of a partition in order. It reads without a
// group and commits nothing. Markers of transactions are records here: they have an offset too. It returns nil once all are
// read, ctx's error when that ends before, and Kafka's refusals, for example of an offset that is no longer there, once the
// other partitions are read.
func Read(ctx context.Context, client *kgo.Client, spans []Span, each func(*kgo.Record)) error {
	offsets := map[string]map[int32]kgo.Offset{}
	left := map[topicPartition]Span{}
	for _, s := range spans {
		if s.From >= s.To || s.Most <= 0 {
			continue
		}
		if offsets[s.Topic] == nil {
			offsets[s.Topic] = map[int32]kgo.Offset{}
		}
		offsets[s.Topic][s.Partition] = kgo.NewOffset().At(s.From)
		left[topicPartition{s.Topic, s.Partition}] = s
	}
	if len(left) == 0 {
		return nil
	}
	reader, err := kgo.NewClient(append(client.Opts(),
		kgo.ConsumePartitions(offsets), kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.KeepControlRecords(),
		kgo.FetchMaxPartitionBytes(64<<10))...)
	if err != nil {
		return fmt.Errorf("set up the Kafka client: %w", err)
	}
	defer reader.Close()
	var refused []error
	for len(left) > 0 {
		fetches := reader.PollFetches(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			refused = append(refused, fmt.Errorf("read %s/%d: %w", topic, partition, err))
			delete(left, topicPartition{topic, partition})
		})
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			at := topicPartition{p.Topic, p.Partition}
			s, reading := left[at]
			for i := 0; i < len(p.Records) && reading; i++ {
				if record := p.Records[i]; record.Offset < s.To {
					each(record)
					s.Most--
				}
				reading = s.Most > 0 && p.Records[i].Offset < s.To-1
			}
			left[at] = s
			if !reading {
				delete(left, at)
				reader.PauseFetchPartitions(map[string][]int32{p.Topic: {p.Partition}})
			}
		})
	}
	return errors.Join(refused...)
}
