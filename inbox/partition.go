package inbox

import "time"

type topicPartition struct {
	topic     string
	partition int32
}

// partition is one assignment of a Kafka partition: it ends when the partition is revoked or lost, and never comes
// back. A later assignment of the same partition is another object, so nothing that was started before can move its
// watermark. All fields are guarded by lanes.mu.
type partition struct {
	topicPartition
	lanes    map[string]*lane
	tracked  []*tracked // by offset; the first unfinished one is the watermark
	next     int64      // the offset after the last record seen; -1 before the first
	epoch    int32
	commit   int64 // the watermark that Kafka knows; -1 before the first
	buffered int
	bytes    int64
	paused   bool
	budget   string // which budget was used up when it was paused, in words
	pausedAt time.Time
	gone     bool // nothing more is started
	lost     bool // what is started is in vain
	inFlight int  // batches
}

// tracked is the place of one message in its partition.
type tracked struct {
	part   *partition
	offset int64
	epoch  int32
	size   int64
	done   bool
}

func newPartition(at topicPartition) *partition {
	return &partition{topicPartition: at, lanes: map[string]*lane{}, next: -1, epoch: -1, commit: -1}
}

// cut says that the log goes on at offset with other records than those that were read there. What was read and is
// unfinished keeps its turn; until it is finished, the watermark stays at the cut.
func (p *partition) cut(offset int64) {
	p.next, p.epoch = offset, -1
	for _, t := range p.tracked {
		if t.offset >= offset {
			t.offset, t.epoch = offset, -1
		}
	}
}

// finish marks a message as having its fate.
func (p *partition) finish(t *tracked) {
	t.done = true
	p.buffered--
	p.bytes -= t.size
	for len(p.tracked) > 0 && p.tracked[0].done {
		p.epoch = p.tracked[0].epoch
		p.tracked[0] = nil
		p.tracked = p.tracked[1:]
	}
}

// watermark is the offset to resume from: everything below it has its fate.
func (p *partition) watermark() int64 {
	if len(p.tracked) > 0 {
		return p.tracked[0].offset
	}
	return p.next
}

// span is how far the newest message is ahead of the watermark.
func (p *partition) span() int64 { return p.next - p.watermark() }
