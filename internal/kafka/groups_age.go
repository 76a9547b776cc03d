package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

const (
	ageTimeout = 3 * time.Second // for the oldest records of one group
	ageReaders = 4               // groups whose records are read at once
)

// ages fills in when the oldest unfinished record of each partition was written: the record at the committed offset, or
// the first one behind it, tells. One that does not answer in time leaves its partition without an age, and with a reason.
func ages(ctx context.Context, client *kgo.Client, groups []Group) error {
	var readers errgroup.Group
	readers.SetLimit(ageReaders)
	for i := range groups {
		readers.Go(func() error { return agesOf(ctx, client, groups[i].Partitions) })
	}
	return readers.Wait()
}

func agesOf(ctx context.Context, client *kgo.Client, partitions []Partition) error {
	waiting := map[topicPartition]*Partition{}
	var spans []Span
	for i := range partitions {
		p := &partitions[i]
		if p.Lag == nil || *p.Lag == 0 || p.Error != "" {
			continue
		}
		from := p.Start
		if p.Committed != nil {
			from = p.Committed
		}
		spans = append(spans, Span{Topic: p.Topic, Partition: p.Partition, From: *from, To: *p.End, Most: 1})
		waiting[topicPartition{p.Topic, p.Partition}] = p
	}
	limited, cancel := context.WithTimeout(ctx, ageTimeout)
	defer cancel()
	err := Read(limited, client, spans, func(record *kgo.Record) {
		p := waiting[topicPartition{record.Topic, record.Partition}]
		delete(waiting, topicPartition{record.Topic, record.Partition})
		if record.Timestamp.UnixMilli() <= 0 {
			p.Error = "its oldest unfinished record says no time"
			return
		}
		p.Oldest = &record.Timestamp
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, p := range waiting {
		p.Error = fmt.Sprintf("its oldest unfinished record could not be read within %v", ageTimeout)
		if err != nil && limited.Err() == nil {
			p.Error = fmt.Sprintf("its oldest unfinished record could not be read: %v", err)
		}
	}
	return nil
}
