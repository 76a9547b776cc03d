package inbox

import (
	"context"
	"fmt"
	"time"
)

// watch logs why nothing moves, as long as nothing does.
func (c *Consumer) watch(ctx context.Context) {
	tick := time.NewTicker(c.opts.StallAfter)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		finished, why := c.stalled(time.Now())
		if finished == before && why != "" {
			c.opts.Log.WarnContext(ctx, "nothing moves", "why", why)
		}
		before = finished
	}
}

// stalled says in words what the waiting messages wait for; "" when none waits.
func (c *Consumer) stalled(now time.Time) (finished int64, why string) {
	cause := c.circuit.openError()
	l := c.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == 0 {
		return l.finished, ""
	}
	if cause != nil {
		return l.finished, fmt.Sprintf("%d messages wait: %v", l.waiting, cause)
	}
	var oldest *batch
	for b := range l.batches {
		if oldest == nil || b.started.Before(oldest.started) {
			oldest = b
		}
	}
	if oldest == nil {
		return l.finished, fmt.Sprintf("%d messages wait for the next try of their keys", l.waiting)
	}
	m := oldest.items[0].msg
	return l.finished, fmt.Sprintf("%d messages wait; a batch of %d is in the handler of %s %s since %s, its first message is %s at partition %d offset %d",
		l.waiting, len(oldest.items), m.Topic, oldest.route.Type, now.Sub(oldest.started).Round(time.Second), m.ID, m.Partition, m.Offset)
}
