// Package outboxtest helps to test what is built on package outbox: a broker in memory to publish to, and a checker that
// proves from the outside that nothing was lost and no key got out of order.
package outboxtest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"

	"github.com/orderflow-dev/orderflow/outbox"
)

// ErrDown is what a broker that is down answers.
var ErrDown = errors.New("broker is down")

// Broker is an [outbox.Publisher] that keeps what it is given. Like Kafka it refuses batches: a record that it refuses
// fails every record that was sent to the same partition with it. The zero value is ready, and may be used by several
// relays at once.
type Broker struct {
	// Partitions is how many partitions each topic has. Default 12.
	Partitions int
	// Refuse, if set, says whether a record is refused for good.
	Refuse func(outbox.Record) bool
	// Sending, if set, is called with each page before anything of it is kept. An error fails the whole page, and
	// nothing of it is kept.
	Sending func(page []outbox.Record) error
	// Acking, if set, is called with each page after it is kept. An error loses the answer: all records seem to have
	// failed.
	Acking func(page []outbox.Record) error

	mu      sync.Mutex
	records []outbox.Record
	down    bool
	changed chan struct{}
}

// Publish is [outbox.Publisher].
func (b *Broker) Publish(ctx context.Context, page []outbox.Record) []error {
	if err := ctx.Err(); err != nil {
		return all(page, err)
	}
	if b.Sending != nil {
		if err := b.Sending(page); err != nil {
			return all(page, err)
		}
	}
	errs, err := b.keep(page)
	if err != nil {
		return all(page, err)
	}
	if b.Acking != nil {
		if err := b.Acking(page); err != nil {
			return all(page, err)
		}
	}
	return errs
}

func all(page []outbox.Record, err error) []error {
	errs := make([]error, len(page))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func (b *Broker) keep(page []outbox.Record) ([]error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, ErrDown
	}
	refused := map[string]bool{}
	if b.Refuse != nil {
		for i := range page {
			if b.Refuse(page[i]) {
				refused[b.partition(page[i])] = true
			}
		}
	}
	var errs []error
	for i := range page {
		if refused[b.partition(page[i])] {
			if errs == nil {
				errs = make([]error, len(page))
			}
			errs[i] = fmt.Errorf("%w: batch of %s", outbox.ErrRefused, b.partition(page[i]))
			continue
		}
		b.records = append(b.records, page[i])
	}
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
	return errs, nil
}

func (b *Broker) partition(r outbox.Record) string {
	partitions := b.Partitions
	if partitions == 0 {
		partitions = 12
	}
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(r.Key)) // a hash never fails
	return fmt.Sprintf("%s/%d", r.Topic, hash.Sum32()%uint32(partitions))
}

// SetDown makes the broker unreachable, or reachable again.
func (b *Broker) SetDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

// Records returns what was acknowledged, in that order.
func (b *Broker) Records() []outbox.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.records)
}

// Wait returns when enough reports true for what was acknowledged, or with an error when ctx ends.
func (b *Broker) Wait(ctx context.Context, enough func([]outbox.Record) bool) error {
	for {
		b.mu.Lock()
		if enough(b.records) {
			b.mu.Unlock()
			return nil
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed, have := b.changed, len(b.records)
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for records, have %d: %w", have, ctx.Err())
		}
	}
}
