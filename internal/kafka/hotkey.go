package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"
)

// HotKey is the key that the most of a partition's newest records have.
type HotKey struct {
	Key           []byte
	Records, Seen int // that have the key, of those looked at
}

// FindHotKey looks at the newest records of a partition, at most so many, as far as they come before ctx ends.
func FindHotKey(ctx context.Context, client *kgo.Client, p Partition, most int) (hot HotKey, err error) {
	if p.End == nil || p.Start == nil {
		return hot, nil
	}
	counts := map[string]int{}
	span := Span{Topic: p.Topic, Partition: p.Partition, From: max(*p.Start, *p.End-int64(most)), To: *p.End, Most: most}
	err = Read(ctx, client, []Span{span}, func(record *kgo.Record) {
		key := string(record.Key)
		counts[key]++
		hot.Seen++
		if counts[key] > hot.Records {
			hot.Key, hot.Records = record.Key, counts[key]
		}
	})
	if hot.Seen > 0 && errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return hot, err
}
