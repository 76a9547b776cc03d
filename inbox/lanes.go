package inbox

import (
	"context"
	"slices"
	"sync"
	"time"
)

// lanes hands messages to workers. A lane is one key of one partition; its messages are in one worker at a time. A
// worker takes a batch of lanes whose next message has the same route.
type lanes struct {
	batchSize int
	batchWait time.Duration
	maxSpan   int64 // offsets that the newest message of a partition may be ahead of the oldest unfinished one
	circuit   *circuit

	mu       sync.Mutex
	changed  *sync.Cond
	ready    map[*route]*line
	closed   bool
	bytes    int64
	finished int64 // messages that got their fate, for the watchdog
	waiting  int   // messages in memory without a fate
	noRoom   int   // lanes whose head found no room among the held messages
	batches  map[*batch]struct{}

	alarm alarm // for those who wait for a time
}

// line is the lanes that are ready for one route, in the order they became ready.
type line struct {
	lanes    []*lane
	messages int // an upper bound of what they hold
}

// lane is one key of one partition.
type lane struct {
	part  *partition
	key   string
	queue []*item
	busy  bool // in a line, in a worker, or waiting for its next try
	lined bool // in a line
	slow  bool // its last message took far longer than is usual; forgotten with the lane
	since time.Time
	batch *batch    // in a worker
	until time.Time // waiting for its next try; zero otherwise
	full  string    // why its head found no room among the held messages, when it was last to be put there
}

// batch is what one worker does in one transaction.
type batch struct {
	route   *route
	lanes   []*lane
	counts  []int   // how many messages of each lane
	items   []*item // those messages, lane by lane
	probe   bool
	spill   bool // the only lane is to be parked
	started time.Time
	cancel  context.CancelFunc // set by arm
}

func newLanes(batchSize int, batchWait time.Duration, maxSpan int64, c *circuit) *lanes {
	l := &lanes{batchSize: batchSize, batchWait: batchWait, maxSpan: maxSpan, circuit: c, ready: map[*route]*line{}, batches: map[*batch]struct{}{}}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// close makes take return nil. Started batches go on.
func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
}

// add appends a message to its lane. The caller holds mu, and wakes the workers when it has added all.
func (l *lanes) add(p *partition, it *item) {
	ln := p.lanes[it.key]
	if ln == nil {
		ln = &lane{part: p, key: it.key}
		p.lanes[it.key] = ln
	}
	ln.queue = append(ln.queue, it)
	l.waiting++
	l.bytes += it.track.size
	switch {
	case !ln.busy:
		l.enqueue(ln)
	case ln.lined:
		l.ready[ln.queue[0].route].messages++
	}
}

// enqueue puts a lane at the end of its line.
func (l *lanes) enqueue(ln *lane) {
	rt := ln.queue[0].route
	at := l.ready[rt]
	if at == nil {
		at = &line{}
		l.ready[rt] = at
	}
	ln.busy, ln.lined, ln.since = true, true, time.Now()
	at.lanes = append(at.lanes, ln)
	at.messages += len(ln.queue)
}

// take waits for work and returns it; nil after close.
func (l *lanes) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return nil
		}
		if b := l.tryTake(time.Now()); b != nil {
			return b
		}
		l.changed.Wait()
	}
}

func (l *lanes) tryTake(now time.Time) *batch {
	rt, at := l.oldest()
	if at == nil {
		return nil
	}
	wait, probe := l.circuit.permit(now)
	if wait > 0 {
		l.wakeAfter(wait)
		return nil
	}
	size := min(l.batchSize, rt.limit.size())
	if probe {
		size = 1
	}
	if age := now.Sub(at.lanes[0].since); at.messages < size && age < l.batchWait {
		l.wakeAfter(l.batchWait - age)
		return nil
	}
	b := l.assemble(rt, at, size)
	b.probe, b.started = probe, now
	if len(b.items) == 0 {
		if probe {
			l.circuit.skip()
		}
		return nil
	}
	b.spill = !probe && l.spills(b)
	l.batches[b] = struct{}{}
	return b
}

// spills reports whether b is a slow lane that is about to stop its partition: its messages then wait among the held ones,
// where the drainer works them, and the partition goes on. With no room there it goes on as it is.
func (l *lanes) spills(b *batch) bool {
	ln := b.lanes[0]
	return ln.slow && ln.full == "" && ln.part.span() >= l.maxSpan/2 && b.items[0].track == ln.part.tracked[0]
}

// oldest returns the line whose first lane waits longest.
func (l *lanes) oldest() (*route, *line) {
	var rt *route
	var oldest *line
	for r, at := range l.ready {
		for len(at.lanes) > 0 && at.lanes[0].part.gone {
			at.messages -= len(at.lanes[0].queue)
			at.lanes = at.lanes[1:]
		}
		if len(at.lanes) == 0 {
			delete(l.ready, r)
			continue
		}
		if oldest == nil || at.lanes[0].since.Before(oldest.lanes[0].since) {
			rt, oldest = r, at
		}
	}
	return rt, oldest
}

// assemble takes up to size messages from the front of a line: from each lane those at its head that have this route. A slow
// lane goes alone, one message at a time: the keys that share its transaction would wait for it.
func (l *lanes) assemble(rt *route, at *line, size int) *batch {
	b := &batch{route: rt}
	for len(at.lanes) > 0 && len(b.items) < size {
		ln := at.lanes[0]
		if ln.slow {
			if len(b.items) > 0 {
				break
			}
			size = 1
		}
		at.lanes[0] = nil
		at.lanes = at.lanes[1:]
		at.messages -= len(ln.queue)
		ln.lined = false
		if ln.part.gone {
			continue
		}
		n := 0
		for n < len(ln.queue) && len(b.items) < size && ln.queue[n].route == rt {
			b.items = append(b.items, ln.queue[n])
			n++
		}
		ln.batch = b
		b.lanes, b.counts = append(b.lanes, ln), append(b.counts, n)
		ln.part.inFlight++
	}
	if len(at.lanes) == 0 {
		delete(l.ready, rt)
	}
	return b
}

// finish takes the messages with a fate off their lanes. next says of the first one that stays how long it waits, and for
// what; finished messages of a lane always are its first ones, because what follows a failed message waits.
func (l *lanes) finish(b *batch, finished func(*item) bool, next func(*item) decision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.batches, b)
	l.time(b)
	i := 0
	for at, ln := range b.lanes {
		n := 0
		for ; n < b.counts[at] && finished(b.items[i+n]); n++ {
			l.settle(b.items[i+n])
		}
		i += b.counts[at]
		clear(ln.queue[:n])
		ln.queue = ln.queue[n:]
		ln.part.inFlight--
		l.release(ln, next)
	}
	l.changed.Broadcast()
}

// time notes which lanes of a batch were slow.
func (l *lanes) time(b *batch) {
	var all time.Duration
	timed, i := 0, 0
	for at, ln := range b.lanes {
		var longest time.Duration
		for _, it := range b.items[i : i+b.counts[at]] {
			if it.took > 0 {
				timed++
			}
			all += it.took
			longest = max(longest, it.took)
		}
		i += b.counts[at]
		if longest > 0 {
			ln.slow = b.route.pace.slow(longest)
		}
	}
	b.route.pace.learn(all, timed)
}

func (l *lanes) settle(it *item) {
	it.track.part.finish(it.track)
	l.finished++
	if !it.track.part.gone { // end has counted it already
		l.bytes -= it.track.size
		l.waiting--
	}
}

// release gives a lane back after its batch.
func (l *lanes) release(ln *lane, next func(*item) decision) {
	ln.busy, ln.batch = false, nil
	l.setFull(ln, "")
	switch {
	case ln.part.gone:
	case len(ln.queue) == 0:
		delete(ln.part.lanes, ln.key)
	default:
		d := next(ln.queue[0])
		l.setFull(ln, d.full)
		if d.retryIn <= 0 {
			l.enqueue(ln)
			return
		}
		ln.busy, ln.until = true, time.Now().Add(d.retryIn)
		time.AfterFunc(d.retryIn, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			ln.until = time.Time{}
			if !ln.part.gone {
				l.enqueue(ln)
				l.changed.Broadcast()
			}
		})
	}
}

// setFull keeps the count of lanes without room. The caller holds mu.
func (l *lanes) setFull(ln *lane, full string) {
	if ln.full != "" {
		l.noRoom--
	}
	if ln.full = full; full != "" {
		l.noRoom++
	}
}

// withoutRoom returns how many lanes wait for room among the held messages.
func (l *lanes) withoutRoom() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.noRoom
}

// end takes a partition out: nothing more of it is started. The caller holds mu.
func (l *lanes) end(p *partition) {
	p.gone = true
	for _, ln := range p.lanes {
		l.setFull(ln, "")
		for _, it := range ln.queue {
			if !it.track.done {
				l.bytes -= it.track.size
				l.waiting--
			}
		}
	}
}

// arm gives a batch what ends it, and reports false when one of its partitions is lost already.
func (l *lanes) arm(b *batch, cancel context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.cancel = cancel
	return !b.lost()
}

func (b *batch) lost() bool {
	return slices.ContainsFunc(b.lanes, func(ln *lane) bool { return ln.part.lost })
}

// lose cancels the batches that have messages of parts: somebody else has these partitions now.
func (l *lanes) lose(parts []*partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range parts {
		p.lost = true
	}
	for b := range l.batches {
		if b.lost() && b.cancel != nil {
			b.cancel()
		}
	}
}

// quiesce waits until no batch has messages of parts, at most until the deadline, and reports whether it came to that.
func (l *lanes) quiesce(ctx context.Context, parts []*partition, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	stop := context.AfterFunc(ctx, l.wakeAll)
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		busy := false
		for _, p := range parts {
			busy = busy || p.inFlight > 0
		}
		if !busy {
			return true
		}
		if !time.Now().Before(deadline) || ctx.Err() != nil {
			return false
		}
		l.wakeAfter(time.Until(deadline))
		l.changed.Wait()
	}
}
