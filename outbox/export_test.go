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

// Chunk is how many rows of a window are listed together.
const Chunk = chunk

// SetListMax says, before r runs, how many rows of a big window it lists at once.
func (r *Relay) SetListMax(n int) { r.listMax = n }

// Leader is a relay that leads and is moved by hand.
type Leader struct{ t *term }

// Lead makes r lead from its durable cursor.
func (r *Relay) Lead(ctx context.Context) (*Leader, error) {
	if err := r.enroll(ctx); err != nil {
		return nil, err
	}
	l, err := r.acquire(ctx)
	if err != nil {
		return nil, err
	}
	incarnation, err := r.knowServer(ctx)
	if err != nil {
		return nil, err
	}
	t := &term{r: r, lease: l, incarnation: incarnation}
	return &Leader{t}, t.load(ctx)
}

// Turn is one poll and the publishing of all that it finds.
func (l *Leader) Turn(ctx context.Context) error {
	_, err := l.t.turn(ctx)
	return err
}

// InWindow reports whether a big window is begun and not done.
func (l *Leader) InWindow() bool { return l.t.at.cur != "" }

// Checkpoint saves how far l is.
func (l *Leader) Checkpoint(ctx context.Context) error { return l.t.checkpoint(ctx, nil) }
