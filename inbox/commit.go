package inbox

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// commitLoop commits watermarks and resumes partitions until ctx ends.
func (c *Consumer) commitLoop(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(c.opts.CommitEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.resume(client)
			c.commit(ctx, client, c.current())
		}
	}
}

func (c *Consumer) current() []*partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := make([]*partition, 0, len(c.partitions))
	for _, p := range c.partitions {
		parts = append(parts, p)
	}
	return parts
}

// commit tells Kafka the watermarks of parts that have moved. An offset only says where to resume; if it is lost, the
// messages above it are duplicates.
func (c *Consumer) commit(ctx context.Context, client *kgo.Client, parts []*partition) {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	moved := map[*partition]int64{}
	c.lanes.mu.Lock()
	for _, p := range parts {
		mark := p.watermark()
		if mark < 0 || mark == p.commit {
			continue
		}
		if offsets[p.topic] == nil {
			offsets[p.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.topic][p.partition] = kgo.EpochOffset{Epoch: p.epoch, Offset: mark}
		moved[p] = mark
	}
	c.lanes.mu.Unlock()
	if len(moved) == 0 {
		return
	}
	// Also on the way out, when ctx has ended, what is finished should be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var failed error
	client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = commitError(resp, err)
	})
	if failed != nil {
		c.opts.Log.WarnContext(ctx, "offset commit failed, will retry", "error", failed)
		return
	}
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	for p, mark := range moved {
		p.commit = mark
	}
}

func commitError(resp *kmsg.OffsetCommitResponse, err error) error {
	if err != nil || resp == nil {
		return err
	}
	for _, topic := range resp.Topics {
		for _, p := range topic.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return err
			}
		}
	}
	return nil
}

// leave ends the membership after the last batch: it commits what is finished and closes the client.
func (c *Consumer) leave(ctx context.Context, client *kgo.Client) {
	c.commit(ctx, client, c.current())
	client.CloseAllowingRebalance()
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.partitions)
}
