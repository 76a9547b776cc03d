package inbox

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

// cutBack says that Kafka has lost the end of a partition's log: the client reads on before what it has read. That offset is
// committed before a record comes there, or a consumer that starts meanwhile would pass over those that come.
func (c *Consumer) cutBack(ctx context.Context, loss *kgo.ErrDataLoss) {
	p := c.partition(topicPartition{loss.Topic, loss.Partition})
	if p == nil {
		return // revoked since
	}
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	if p.next < 0 {
		p.next = loss.ConsumedTo
	}
	if loss.ResetTo < p.next {
		c.cut(ctx, p, loss.ResetTo)
	}
}

// cut takes note that the log of p goes on at an offset that was read already. Its messages are known by their ids: those that
// come again are duplicates. The caller holds mu.
func (c *Consumer) cut(ctx context.Context, p *partition, offset int64) {
	lost := p.next - offset
	c.opts.Log.ErrorContext(ctx, "kafka has lost the end of a partition, reading on from there",
		"topic", p.topic, "partition", p.partition, "offset", offset, "records", lost)
	c.meters.offsetsLost(ctx, p.topic, "cut", lost)
	p.cut(offset)
}

// expect compares what comes next of a partition with what should. Kafka may have removed records that nobody has read. The
// first ones of an assignment should begin where the group has committed.
func (c *Consumer) expect(ctx context.Context, client *kgo.Client, p *partition, ft kgo.FetchPartition) {
	c.lanes.mu.Lock()
	next := p.next
	c.lanes.mu.Unlock()
	if next < 0 {
		at, known := client.CommittedOffsets()[p.topic][p.partition]
		if !known || at.Offset < 0 {
			return
		}
		next = at.Offset
		c.lanes.mu.Lock()
		p.next, p.commit = next, next
		c.lanes.mu.Unlock()
	}
	// Gaps alone are nothing special: transaction markers and compacted records leave them.
	if removed := min(ft.LogStartOffset, ft.Records[0].Offset) - next; removed > 0 {
		c.opts.Log.ErrorContext(ctx, "records were removed before they were read",
			"topic", p.topic, "partition", p.partition, "offset", next, "records", removed)
		c.meters.offsetsLost(ctx, p.topic, "removed", removed)
	}
}
