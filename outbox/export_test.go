package outbox

import (
	"context"
	"time"
)

// SetSlotWidth tells r, before it runs, that tests have changed how long the ring's slots are.
func (r *Relay) SetSlotWidth(d time.Duration) {
	r.slotWidth, r.opts.Retention, r.tidyEvery = d, d, d/4
}

// SetTidyEvery says, before r runs, how often it looks for leaves to truncate.
func (r *Relay) SetTidyEvery(d time.Duration) { r.tidyEvery = d }

// Checkpoint saves prev as the leader of epoch would that knows the server as incarnation.
func (r *Relay) Checkpoint(ctx context.Context, epoch int64, incarnation, prev string) error {
	l := &lease{epoch: epoch, start: time.Now(), term: r.opts.Lease}
	l.renewed(l.start)
	t := &term{r: r, lease: l, incarnation: incarnation, at: cursor{prev: prev}}
	return t.checkpoint(ctx, nil)
}

// SetUnknownAfter says, before p publishes, how long a topic must be unknown for its records to be refused.
func (p *KafkaPublisher) SetUnknownAfter(d time.Duration) { p.absent.limit = d }
