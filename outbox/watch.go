package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sighting is what a relay saw of its outbox last, leading or standing by.
type sighting struct {
	at          time.Time
	err         error
	relay       RelayStatus
	transaction Transaction
}

// watch looks at the outbox until ctx ends, apart from the loop that publishes: a loop that hangs must not look well.
func (r *Relay) watch(ctx context.Context) {
	const every = time.Second
	for {
		seen := r.look(ctx)
		if ctx.Err() != nil {
			return
		}
		r.seen.Store(&seen)
		sleep(ctx, every)
	}
}

func (r *Relay) look(ctx context.Context) sighting {
	ctx, cancel := context.WithTimeout(ctx, r.opts.MaxAge)
	defer cancel()
	seen := sighting{at: time.Now()}
	if seen.relay, seen.err = inspectRelay(ctx, r.pool, r.opts.Schema, r.opts.Name); seen.err == nil {
		seen.transaction, seen.err = oldestTransaction(ctx, r.pool)
	}
	return seen
}

// Healthy returns nil while messages are published: by this relay, or by another of its name. It says how old the
// oldest waiting message is once that is above [RelayOptions.MaxAge], whatever the reason. It never blocks.
func (r *Relay) Healthy() error {
	seen := r.seen.Load()
	switch {
	case seen == nil:
		return errors.New("relay has not looked at the outbox yet")
	case seen.err != nil:
		return fmt.Errorf("relay cannot look at the outbox: %w", seen.err)
	case time.Since(seen.at) > r.opts.MaxAge:
		return fmt.Errorf("relay last looked at the outbox %v ago", time.Since(seen.at).Round(time.Second))
	case seen.relay.Oldest > r.opts.MaxAge:
		return fmt.Errorf("the oldest of %d unpublished messages waits for %v, limit %v",
			seen.relay.Backlog, seen.relay.Oldest.Round(time.Second), r.opts.MaxAge)
	}
	return nil
}
