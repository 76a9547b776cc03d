package outboxtest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"github.com/orderflow-dev/orderflow/outbox"
)

// ErrDown is the error of every record that is sent to a broker that is down.
var ErrDown = errors.New("broker is down")

// ErrFailed is the error of a record that [Broker.Fail] fails, and of those in the batch with it.
var ErrFailed = errors.New("batch failed")

// Broker is an [outbox.Publisher] that keeps what it is given. Like Kafka it takes or fails batches: all records of a
// page that go to one partition are one. The zero value is ready and takes everything. Its fields are set before it is
// used; its methods, and the relays that share it, may call it at once.
type Broker struct {
	// Partitions is how many partitions each topic has. Default 12.
	Partitions int
	// Refuse, if set, says whether a record is refused for good, with [outbox.ErrRefused], as one above the topic's
	// limit is. The relay finds the culprit of the batch and parks its key.
	Refuse func(outbox.Record) bool
	// Fail, if set, says whether a record fails this time, with [ErrFailed], as one does whose partition has no leader.
	// Nothing of its batch is kept; the relay sends it again.
	Fail func(outbox.Record) bool
	// Delay is how long each page takes to be acknowledged. A page whose time is over first is kept, and seems to have
	// failed. Default 0.
	Delay time.Duration
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
	if b.Delay > 0 {
		timer := time.NewTimer(b.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return all(page, ctx.Err())
		}
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
	failed := b.failures(page)
	var errs []error
	for i := range page {
		if err := failed[b.partition(page[i])]; err != nil {
			if errs == nil {
				errs = make([]error, len(page))
			}
			errs[i] = err
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

// failures are the partitions whose batch of page is not taken.
func (b *Broker) failures(page []outbox.Record) map[string]error {
	failed := map[string]error{}
	for i := range page {
		to := b.partition(page[i])
		switch {
		case b.Refuse != nil && b.Refuse(page[i]):
			failed[to] = fmt.Errorf("%w: batch of %s", outbox.ErrRefused, to)
		case failed[to] == nil && b.Fail != nil && b.Fail(page[i]):
			failed[to] = fmt.Errorf("%w: %s", ErrFailed, to)
		}
	}
	return failed
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

// SetDown makes the broker unreachable, or reachable again. While it is down every record fails with [ErrDown].
func (b *Broker) SetDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

// Records returns what was kept, in that order, which is the order within every partition.
func (b *Broker) Records() []outbox.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.records)
}

// Wait returns nil when enough reports true for what was kept, which it asks again after each page; or ctx's error when
// ctx ends first. enough must neither keep nor change what it is given. [History.Complete] is one.
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
