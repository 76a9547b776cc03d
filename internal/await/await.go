// Package await keeps a start waiting for what it needs, says so, and gives up in time.
//
// Whatever starts a system starts its parts side by side, so a Postgres or a Kafka that is not there yet is no mistake.
// A mistake, such as a wrong password, is not waited for.
package await

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Default is how long a service waits when nothing else is said.
const Default = time.Minute

// sayEvery is the time between two warnings about the same wait.
const sayEvery = 10 * time.Second

// Patience bounds the time that one start spends waiting, for all that it needs together.
type Patience struct {
	log   *slog.Logger
	limit time.Duration
	until time.Time
}

// New returns a patience whose time begins now. Zero means [Default], a negative limit one try. log may be nil.
func New(log *slog.Logger, limit time.Duration) *Patience {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if limit == 0 {
		limit = Default
	}
	return &Patience{log: log, limit: limit, until: time.Now().Add(limit)}
}

// Left returns what is left of the time, never zero: a negative time is over.
func (p *Patience) Left() time.Duration {
	if left := time.Until(p.until); left > 0 {
		return left
	}
	return -1
}

// For calls try until it returns nil. It returns try's error when mayCome says that waiting does not help, when the
// patience is over, and, with ctx's in it, when ctx ends. A nil patience is one try.
//
// What is waited for is logged as a warning at the first failure and about every 10 s, with the error, which must say what
// to do.
func (p *Patience) For(ctx context.Context, what string, try func(context.Context) error, mayCome func(error) bool) error {
	if p == nil {
		return try(ctx)
	}
	var said time.Time
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := try(ctx)
		switch {
		case err == nil:
			if !said.IsZero() {
				p.log.InfoContext(ctx, "the wait is over", "for", what)
			}
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case !mayCome(err):
			return err
		case time.Now().Add(pause).After(p.until):
			if p.limit < 0 {
				return err
			}
			return fmt.Errorf("waited %v for %s: %w", p.limit.Round(time.Millisecond), what, err)
		}
		if time.Since(said) >= sayEvery {
			said = time.Now()
			p.log.WarnContext(ctx, "start waits", "for", what, "gives_up_in", time.Until(p.until).Round(time.Second).String(), "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-timer.C:
		}
	}
}
