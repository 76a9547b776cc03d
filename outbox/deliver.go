package outbox

import (
	"context"
	"errors"
	"hash/maphash"
	"time"
)

// deliver publishes a page in order and returns when every record is acknowledged, or is among the rows it returns:
// those that the broker refused for good, and those of a key that is parked. It retries everything else until the
// lease is lost.
func (t *term) deliver(ctx context.Context, page []Record) ([]parkedRow, error) {
	const shortest, longest = 10 * time.Millisecond, time.Second
	var aside []parkedRow
	pause := shortest
	for pending := page; ; {
		pending, aside = t.putAside(pending, aside)
		if len(pending) == 0 {
			return aside, nil
		}
		errs, err := t.publish(ctx, pending)
		if err != nil {
			return nil, err
		}
		before := len(pending)
		cause := firstError(errs)
		if pending, err = t.oneByOne(ctx, pending, errs, &aside); err != nil {
			return nil, err
		}
		if len(pending) == 0 {
			continue
		}
		if len(pending) < before {
			pause = shortest // the broker answers
			continue
		}
		t.r.log.WarnContext(ctx, "broker takes no messages", "error", cause)
		if !t.unsaved.IsZero() { // the pages before this one, which may have to wait for long
			if err := t.checkpoint(ctx, nil); err != nil {
				return nil, err
			}
		}
		sleep(ctx, pause)
		pause = min(2*pause, longest)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// putAside takes the records of parked keys out of pending.
func (t *term) putAside(pending []Record, aside []parkedRow) ([]Record, []parkedRow) {
	if len(t.parked) == 0 {
		return pending, aside
	}
	kept := make([]Record, 0, len(pending))
	for i := range pending {
		if t.parked[pending[i].lane()] {
			aside = append(aside, parkedRow{record: pending[i]})
		} else {
			kept = append(kept, pending[i])
		}
	}
	return kept, aside
}

// oneByOne sends the refused ones of pending again, alone and in order: a broker refuses a batch for one of its
// records. What it refuses again is the culprit, and is parked with its key. It returns what is still to be sent.
func (t *term) oneByOne(ctx context.Context, pending []Record, errs []error, aside *[]parkedRow) ([]Record, error) {
	var (
		rest []Record
		held = map[lane]bool{} // keys with a record in rest: nothing of theirs may go ahead of it
	)
	for i := range pending {
		if errs == nil || errs[i] == nil {
			continue
		}
		record := &pending[i]
		on := record.lane()
		if t.parked[on] {
			*aside = append(*aside, parkedRow{record: *record})
			continue
		}
		if held[on] || !errors.Is(errs[i], ErrRefused) {
			held[on] = true
			rest = append(rest, *record)
			continue
		}
		alone, err := t.publish(ctx, pending[i:i+1])
		if err != nil {
			return nil, err
		}
		switch refusal := firstError(alone); {
		case refusal == nil:
		case errors.Is(refusal, ErrRefused):
			t.parked[on] = true
			*aside = append(*aside, parkedRow{record: *record, refusal: refusal})
			t.r.metrics.parked(ctx)
			t.r.log.ErrorContext(ctx, "message refused, its key is parked",
				"topic", record.Topic, "message_id", record.ID, "error", refusal)
		default:
			held[on] = true
			rest = append(rest, *record)
		}
	}
	return rest, nil
}

// publish hands page to the publisher, for no longer than the lease holds, and counts what is acknowledged. A page that
// is in flight is finished even when the relay is told to stop.
func (t *term) publish(ctx context.Context, page []Record) ([]error, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// The margin is for the broker's last answer and the checkpoint.
	limit := t.lease.left() - t.r.opts.Lease/8
	if limit <= 0 {
		return nil, errFenced
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	errs := t.r.publisher.Publish(ctx, page)
	now := time.Now()
	for i := range page {
		if errs != nil && errs[i] != nil {
			continue
		}
		t.r.metrics.acked(ctx, now.Sub(page[i].CreatedAt))
		if !t.replaying && !t.order.follows(&page[i]) {
			t.r.metrics.violation(ctx)
			t.disorder = disorder{t.disorder.messages + 1, page[i].ID}
			t.r.log.ErrorContext(ctx, "message published behind a later one of its key: was it written without the key's lock?",
				"topic", page[i].Topic, "message_id", page[i].ID)
		}
	}
	return errs, nil
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// orderCheck remembers the last seq of the keys seen lately, to notice writers that break the order.
type orderCheck struct {
	seed          maphash.Seed
	recent, older map[uint64]int64
}

// orderMemory bounds each of the two generations.
const orderMemory = 1 << 16

// follows reports whether r comes behind what was published of its key before.
func (o *orderCheck) follows(r *Record) bool {
	if o.recent == nil {
		o.seed, o.recent = maphash.MakeSeed(), map[uint64]int64{}
	}
	var h maphash.Hash
	h.SetSeed(o.seed)
	h.WriteString(r.Topic)
	h.WriteByte(0)
	h.WriteString(r.Key)
	on := h.Sum64()
	last, known := o.recent[on]
	if !known {
		last = o.older[on]
	}
	if len(o.recent) >= orderMemory && !known {
		o.older, o.recent = o.recent, map[uint64]int64{}
	}
	o.recent[on] = max(last, r.Seq)
	return r.Seq > last
}
