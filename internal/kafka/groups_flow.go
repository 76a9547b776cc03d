package kafka

import "time"

// Flow is how a group moved between two looks at it.
type Flow struct {
	In, Out float64 // records per second: written to its partitions, and finished by it
}

// NewFlow compares two looks at one group. ok is false when what was written or finished is unknown for a partition, or no
// time lies between.
func NewFlow(before, after Group) (f Flow, ok bool) {
	seconds := after.At.Sub(before.At).Seconds()
	if seconds <= 0 || !before.known() || !after.known() {
		return f, false
	}
	earlier := map[topicPartition]Partition{}
	for _, p := range before.Partitions {
		earlier[topicPartition{p.Topic, p.Partition}] = p
	}
	var written, finished int64
	for _, now := range after.Partitions {
		was, seen := earlier[topicPartition{now.Topic, now.Partition}]
		if !seen || was.End == nil || now.End == nil || was.next() == nil || now.next() == nil {
			return f, false
		}
		written += *now.End - *was.End
		finished += *now.next() - *was.next()
	}
	return Flow{In: float64(written) / seconds, Out: float64(finished) / seconds}, true
}

// Busiest returns the partition in which the group finished most between two looks. ok is false when nothing was finished.
func Busiest(before, after Group) (busiest Partition, ok bool) {
	earlier := map[topicPartition]Partition{}
	for _, p := range before.Partitions {
		earlier[topicPartition{p.Topic, p.Partition}] = p
	}
	most := int64(0)
	for _, now := range after.Partitions {
		was := earlier[topicPartition{now.Topic, now.Partition}]
		if was.next() == nil || now.next() == nil {
			continue
		}
		if moved := *now.next() - *was.next(); moved > most {
			busiest, most = now, moved
		}
	}
	return busiest, most > 0
}

// next is the offset of the next record to be finished.
func (p Partition) next() *int64 {
	if p.Committed != nil {
		return p.Committed
	}
	return p.Start
}

// Drain returns how long a lag takes to go at this flow. ok is false when it does not: no more is finished than is written.
func (f Flow) Drain(lag int64) (d time.Duration, ok bool) {
	switch {
	case lag == 0:
		return 0, true
	case f.Out <= f.In:
		return 0, false
	}
	return time.Duration(float64(lag) / (f.Out - f.In) * float64(time.Second)), true
}
