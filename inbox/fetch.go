package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// maxPoll bounds the records that one poll moves into lanes.
const maxPoll = 2000

// newClient returns the group's client. What the guarantees rest on comes last, so Options.Kafka cannot undo it.
func (c *Consumer) newClient() (*kgo.Client, error) {
	opts := []kgo.Opt{
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.FetchMaxBytes(16 << 20),
		kgo.RebalanceTimeout(rebalanceTimeout),
	}
	if c.opts.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(c.opts.InstanceID))
	}
	opts = append(opts, c.opts.Kafka...)
	opts = append(opts,
		kgo.ConsumerGroup(c.member),
		kgo.ConsumeTopics(c.routes.topics()...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.DisableAutoCommit(),
		// Without this a partition could be revoked and assigned again between a poll and its enqueueing.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(c.assigned),
		kgo.OnPartitionsRevoked(c.revoked),
		kgo.OnPartitionsLost(c.lost),
	)
	return kgo.NewClient(opts...)
}

// rebalanceTimeout is how long the group waits for a member in a rebalance. A revoke takes at most half of it.
const rebalanceTimeout = 60 * time.Second

// fetch moves records into lanes until ctx ends, or the client cannot go on: it knows topics by their ids, and reads none that was
// deleted and made anew under its name. It never waits for a worker: a partition with too much in memory is paused instead.
func (c *Consumer) fetch(ctx context.Context, client *kgo.Client) {
	d := c.decoder()
	for {
		fetches := client.PollRecords(ctx, maxPoll)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			client.AllowRebalance()
			return
		}
		anew := false
		fetches.EachError(func(topic string, partition int32, err error) {
			loss, cut := errors.AsType[*kgo.ErrDataLoss](err)
			switch {
			case cut:
				c.cutBack(ctx, loss)
			case errors.Is(err, kerr.UnknownTopicID):
				anew = true
				c.opts.Log.ErrorContext(ctx, "topic was deleted and made anew, joining the group again", "topic", topic, "partition", partition)
			case !errors.Is(err, context.Canceled):
				c.opts.Log.WarnContext(ctx, "fetch failed, will retry", "topic", topic, "partition", partition, "error", err)
			}
		})
		c.enqueue(ctx, client, d, fetches)
		client.AllowRebalance()
		if anew {
			return
		}
	}
}

func (c *Consumer) enqueue(ctx context.Context, client *kgo.Client, d decoder, fetches kgo.Fetches) {
	now := time.Now()
	fetches.EachPartition(func(ft kgo.FetchTopicPartition) {
		if len(ft.Records) == 0 {
			return
		}
		items := make([]*item, len(ft.Records))
		for i, rec := range ft.Records {
			items[i] = d.decode(rec, now)
		}
		at := topicPartition{ft.Topic, ft.Partition}
		p := c.partition(at)
		if p == nil {
			return // revoked since it was fetched
		}
		c.expect(ctx, client, p, ft.FetchPartition)
		c.addAll(ctx, client, p, ft.Records, items)
	})
}

func (c *Consumer) partition(at topicPartition) *partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.partitions[at]
}

// addAll puts records of one partition into their lanes, and pauses the partition if that is too much.
func (c *Consumer) addAll(ctx context.Context, client *kgo.Client, p *partition, recs []*kgo.Record, items []*item) {
	ignored := 0
	l := c.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, rec := range recs {
		if rec.Offset < p.next { // whatever the reason: below the watermark it would be lost
			c.cut(ctx, p, rec.Offset)
		}
		if p.commit < 0 && p.next < 0 {
			p.commit = rec.Offset
		}
		p.next = rec.Offset + 1
		it := items[i]
		if it == nil {
			ignored++
			if len(p.tracked) == 0 {
				p.epoch = rec.LeaderEpoch
			}
			continue
		}
		it.track = &tracked{part: p, offset: rec.Offset, epoch: rec.LeaderEpoch, size: it.size()}
		p.tracked = append(p.tracked, it.track)
		p.buffered++
		p.bytes += it.track.size
		l.add(p, it)
	}
	c.meters.count(ctx, p.topic, "ignored", ignored)
	l.changed.Broadcast()
	if budget := c.usedUp(p); budget != "" && !p.paused {
		p.paused, p.budget, p.pausedAt = true, budget, time.Now()
		// Under the lock, as the resume is, or a resume in between would leave the partition paused for ever. Neither
		// waits for anything.
		client.PauseFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
}

// usedUp says which budget p, or the consumer, has used up; "" while there is some left.
func (c *Consumer) usedUp(p *partition) string {
	switch span := c.lanes.maxSpan; {
	case p.buffered >= c.opts.MaxBuffered:
		return fmt.Sprintf("%d of its messages are in memory, the limit is %d", p.buffered, c.opts.MaxBuffered)
	case p.span() >= span:
		return fmt.Sprintf("its newest message is %d offsets ahead of the oldest unfinished one, the limit is %d", p.span(), span)
	case c.lanes.bytes >= c.opts.MaxBufferedBytes && p.buffered > 0:
		return fmt.Sprintf("%d bytes of all partitions are in memory, the limit is %d", c.lanes.bytes, c.opts.MaxBufferedBytes)
	}
	return ""
}

// resume lets partitions fetch again that have worked off half of their budget.
func (c *Consumer) resume(client *kgo.Client) {
	parts := map[string][]int32{}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	for at, p := range c.partitions {
		if p.paused && p.buffered <= c.opts.MaxBuffered/2 && p.span() <= c.lanes.maxSpan/2 &&
			(c.lanes.bytes <= c.opts.MaxBufferedBytes/2 || p.buffered == 0) {
			p.paused = false
			parts[at.topic] = append(parts[at.topic], at.partition)
		}
	}
	if len(parts) > 0 {
		client.ResumeFetchPartitions(parts)
	}
}

func (c *Consumer) assigned(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	c.joined.Store(true)
	c.mu.Lock()
	for topic, ids := range parts {
		for _, id := range ids {
			at := topicPartition{topic, id}
			c.partitions[at] = newPartition(at)
		}
	}
	c.mu.Unlock()
	if len(parts) > 0 {
		client.ResumeFetchPartitions(parts) // a pause outlives the assignment it was made in
		c.opts.Log.InfoContext(ctx, "partitions assigned", "partitions", parts)
	}
}

// takeAway removes partitions from the consumer: nothing more of them is started.
func (c *Consumer) takeAway(parts map[string][]int32) []*partition {
	var taken []*partition
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	for topic, ids := range parts {
		for _, id := range ids {
			at := topicPartition{topic, id}
			if p := c.partitions[at]; p != nil {
				delete(c.partitions, at)
				c.lanes.end(p)
				taken = append(taken, p)
			}
		}
	}
	return taken
}

// revoked hands partitions over cleanly: it finishes what is started, commits, lets go.
func (c *Consumer) revoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	taken := c.takeAway(parts)
	if len(taken) == 0 {
		return
	}
	clean := c.lanes.quiesce(ctx, taken, rebalanceTimeout/2)
	c.commit(ctx, client, taken)
	c.lanes.lose(taken)
	c.opts.Log.InfoContext(ctx, "partitions revoked", "partitions", parts, "finished", clean)
}

// lost lets go of partitions that already belong to somebody else: their batches are cancelled, nothing is committed. The
// client joins the group again; until then this is no member.
func (c *Consumer) lost(ctx context.Context, _ *kgo.Client, parts map[string][]int32) {
	c.joined.Store(false)
	c.lanes.lose(c.takeAway(parts))
	if len(parts) > 0 {
		c.opts.Log.WarnContext(ctx, "partitions lost", "partitions", parts)
	}
}
