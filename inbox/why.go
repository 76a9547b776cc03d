package inbox

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Why says in words what keeps messages from their handlers at this moment, a sentence for each cause: not a member of the
// group, no partitions, a pause of the group or for an outage, no room among the held messages, messages that are in a handler
// or wait for their next try, and partitions that are not fetched for what is in memory already. It is empty when nothing waits.
// Of many messages alike it names those that have been there longest. A message is named by its id and place, never by its key.
// The log repeats it while nothing moves, every [Options.StallAfter].
func (c *Consumer) Why() []string {
	var why []string
	if blocked := c.notReady(); blocked != "" {
		why = append(why, blocked)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joined.Load() && len(c.partitions) == 0 {
		why = append(why, "no partitions assigned: the other members of the group have them all")
	}
	c.lanes.mu.Lock()
	defer c.lanes.mu.Unlock()
	now := time.Now()
	why = append(why, c.lanes.inHandlers(now)...)
	var waiting []*lane
	for _, p := range c.partitions {
		for _, ln := range p.lanes {
			if !ln.until.IsZero() {
				waiting = append(waiting, ln)
			}
		}
	}
	slices.SortFunc(waiting, func(a, b *lane) int {
		return cmp.Or(b.until.Compare(a.until), cmp.Compare(a.head().Offset, b.head().Offset))
	})
	for i, ln := range waiting {
		if i == whyMost {
			why = append(why, fmt.Sprintf("%d more keys wait for the next try of a message", len(waiting)-i))
			break
		}
		why = append(why, ln.place()+" "+ln.step(now))
	}
	return append(why, c.pausedPartitions(now)...)
}

// whyMost is how many causes of one kind are named.
const whyMost = 3

// notReady says why the consumer as a whole does nothing; "" when it works.
func (c *Consumer) notReady() string {
	if why := c.pausedWhy.Load(); why != nil {
		return *why
	}
	if !c.joined.Load() {
		return "not a member of the group yet"
	}
	if err := c.circuit.openError(); err != nil {
		return "paused: " + err.Error()
	}
	if n := c.lanes.withoutRoom(); n > 0 {
		return fmt.Sprintf("no room for the messages of %d keys among the held ones, the limits are %d of a key and %d in all", n, c.opts.MaxHeldPerKey, c.opts.MaxHeld)
	}
	return ""
}

// inHandlers says which batches have been at work longest. The caller holds mu.
func (l *lanes) inHandlers(now time.Time) []string {
	batches := make([]*batch, 0, len(l.batches))
	for b := range l.batches {
		batches = append(batches, b)
	}
	slices.SortFunc(batches, func(a, b *batch) int { return a.started.Compare(b.started) })
	var why []string
	for i, b := range batches {
		if i == whyMost {
			why = append(why, fmt.Sprintf("%d more batches are in their handlers", len(batches)-i))
			break
		}
		s := b.lanes[0].place() + " " + b.lanes[0].step(now)
		if n := len(b.items); n > 1 {
			s += fmt.Sprintf(", in a batch of %d", n)
		}
		why = append(why, s)
	}
	lined := 0
	for _, at := range l.ready {
		lined += at.messages
	}
	if lined > 0 && len(why) > 0 {
		why = append(why, fmt.Sprintf("%d messages wait for a worker", lined))
	}
	return why
}

// pausedPartitions says why partitions are not fetched, and what their oldest message does. The caller holds both locks.
func (c *Consumer) pausedPartitions(now time.Time) []string {
	var why []string
	for at, p := range c.partitions {
		if !p.paused {
			continue
		}
		s := fmt.Sprintf("%s partition %d is not fetched since %s: %s", at.topic, at.partition, clock(p.pausedAt), p.budget)
		if ln := p.oldest(); ln != nil {
			s += "; its oldest is " + ln.place() + ", which " + ln.step(now)
		}
		why = append(why, s)
	}
	slices.Sort(why)
	return why
}

// oldest returns the lane of the first unfinished message: that message is the lane's head, because a lane is in the order
// of the offsets.
func (p *partition) oldest() *lane {
	if len(p.tracked) == 0 {
		return nil
	}
	for _, ln := range p.lanes {
		if ln.queue[0].track == p.tracked[0] {
			return ln
		}
	}
	return nil
}

func (ln *lane) head() *Message { return &ln.queue[0].msg }

// place names the head of a lane.
func (ln *lane) place() string {
	m := ln.head()
	return fmt.Sprintf("message %s (%s partition %d offset %d)", ln.queue[0].dedupID, m.Topic, m.Partition, m.Offset)
}

// step says what the head of a lane does.
func (ln *lane) step(now time.Time) string {
	it := ln.queue[0]
	switch {
	case ln.batch != nil:
		return fmt.Sprintf("is in the handler of %s for %s", ln.batch.route.Type, now.Sub(ln.batch.started).Round(time.Millisecond))
	case ln.full != "" && !ln.until.IsZero():
		return fmt.Sprintf("finds no room among the held ones (%s), and is tried again at %s", ln.full, clock(ln.until))
	case !ln.until.IsZero():
		return fmt.Sprintf("waits for try %d at %s, the last one failed as %s", it.attempts+1, clock(ln.until), it.class)
	}
	return "waits for a worker since " + clock(ln.since)
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000Z") }
