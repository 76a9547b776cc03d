package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

const (
	lookEvery = 200 * time.Millisecond
	chunk     = 1000 // messages at once
)

// replayRun hands messages back and follows what becomes of them.
type replayRun struct {
	cmd   *cobra.Command
	opts  replayOptions
	total int
	show  *progress

	pool    *pgxpool.Pool
	group   string
	pending map[int64]int // handed back and not yet tried → its attempts before
	looked  time.Time
	moved   time.Time // when a message last met its fate
	before  int       // failures in the groups before

	waits                           bool // fates are looked at
	handed, handled, failed, behind int
	sample                          string // what the last failure was
}

// Ends of a run that are no errors of the database.
var (
	errTooManyFailed = errors.New("stopped")
	errNoFate        = errors.New("no fate")
)

// replay hands the messages of one group back, in stages when they are many.
func (r *replayRun) replay(pool *pgxpool.Pool, group string, msgs []inbox.Parked) error {
	r.pool, r.group, r.pending, r.moved = pool, group, map[int64]int{}, time.Now()
	r.before = r.failed
	if !r.opts.canaries(len(msgs)) {
		r.waits = r.waits || r.opts.wait
		return r.stage(msgs, r.limit(stopAfterRest), r.opts.wait)
	}
	r.waits = true
	for i, size := range []int{1, 10, len(msgs)} {
		stage := msgs[:min(size, len(msgs))]
		msgs = msgs[len(stage):]
		limit := r.limit(1)
		if i == 2 {
			limit = r.limit(stopAfterRest)
		}
		if err := r.stage(stage, limit, true); err != nil {
			return err
		}
		if len(msgs) == 0 {
			return nil
		}
		r.show.say("%s: a canary of %d is through", group, len(stage))
	}
	return nil
}

func (r *replayRun) limit(otherwise int) int {
	if r.opts.stopAfter > 0 {
		return r.opts.stopAfter
	}
	return otherwise
}

// stage hands messages back and, if asked to, waits for their fates. It stops when limit messages of the group have failed.
func (r *replayRun) stage(msgs []inbox.Parked, limit int, wait bool) error {
	ctx := r.cmd.Context()
	for _, m := range msgs {
		if r.handed > 0 && r.opts.pause > 0 {
			sleep(ctx, r.opts.pause)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.handBack(m); err != nil {
			return err
		}
		if wait && time.Since(r.looked) > lookEvery {
			if err := r.look(limit); err != nil {
				return err
			}
		}
		r.shown()
	}
	for r.moved = time.Now(); wait && len(r.pending) > 0; {
		if err := r.look(limit); err != nil {
			return err
		}
		r.shown()
		if len(r.pending) > 0 && time.Since(r.moved) > r.opts.timeout {
			return errNoFate
		}
		if len(r.pending) > 0 && !sleep(ctx, lookEvery) {
			return ctx.Err()
		}
	}
	return nil
}

// handBack is not interrupted: Ctrl-C stops between messages.
func (r *replayRun) handBack(m inbox.Parked) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.cmd.Context()), 30*time.Second)
	defer cancel()
	n, err := inbox.Replay(ctx, r.pool, inbox.Filter{Group: r.group, IDs: []int64{m.ID}}, operator())
	if n > 0 {
		r.handed++
		r.pending[m.ID] = m.Attempts
	}
	return err
}

// look finds the fates of the messages that were handed back: gone is handled, more attempts than before is failed.
func (r *replayRun) look(limit int) error {
	r.looked = time.Now()
	left := map[int64]inbox.Parked{}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(r.pending)), chunk) {
		found, err := inbox.ListParked(r.cmd.Context(), r.pool, inbox.Filter{Group: r.group, IDs: ids, Limit: chunk})
		if err != nil {
			return err
		}
		for _, p := range found {
			left[p.ID] = p
		}
	}
	for id, before := range r.pending {
		p, parked := left[id]
		switch {
		case !parked:
			r.handled++
		case p.Attempts > before:
			r.failed++
			r.sample = fmt.Sprintf("%s failed again, and is %s: %s: %s", parkedName(p), p.State, p.Class, firstLine(p.Error, 200))
		case p.NextTryAt.IsZero():
			r.behind++ // the head of its line is dead
		default:
			continue
		}
		delete(r.pending, id)
		r.moved = r.looked
	}
	if r.failed-r.before >= limit {
		return errTooManyFailed
	}
	return nil
}

func (r *replayRun) shown() {
	done := r.handed
	if r.waits {
		done = r.handled + r.failed + r.behind
	}
	r.show.at(done, r.total, r.counts())
}

func (r *replayRun) counts() string {
	if !r.waits {
		return fmt.Sprintf("%d handed back", r.handed)
	}
	s := fmt.Sprintf("%d handed back, %d handled, %d failed again", r.handed, r.handled, r.failed)
	if r.behind > 0 {
		s += fmt.Sprintf(", %d behind a dead message", r.behind)
	}
	if left := r.handed - r.handled - r.failed - r.behind; left > 0 {
		s += fmt.Sprintf(", %d not tried yet", left)
	}
	return s
}

func (r *replayRun) summary() string {
	switch {
	case r.waits:
		return fmt.Sprintf("of %d messages %s", r.total, r.counts())
	case r.handed < r.total:
		return fmt.Sprintf("%d of %d messages were handed back", r.handed, r.total)
	}
	return fmt.Sprintf("%d messages were handed back to their consumers", r.handed)
}

// stopped says why a run ended early, and how it goes on.
func (r *replayRun) stopped(err error) error {
	const again = "the same command goes on with what is still dead"
	switch {
	case errors.Is(err, errTooManyFailed):
		return fail(exitPartial, again+"; `orderflow dlq groups` shows what fails", "stopped: %s", r.sample)
	case errors.Is(err, errNoFate):
		return fail(exitTimeout, "`orderflow groups list` shows whether a consumer runs; they keep what was handed back",
			"no message met its fate for %v: group %s has not tried %d of them", r.opts.timeout, r.group, len(r.pending))
	case r.cmd.Context().Err() != nil:
		return fail(exitInterrupted, again, "interrupted")
	}
	return partial(r.handed, err)
}

// verdict is what a run that came to its end has to say.
func (r *replayRun) verdict() error {
	if r.failed+r.behind == 0 {
		return nil
	}
	return fail(exitPartial, "`orderflow dlq groups` shows what fails", "not all were handled: %s", r.sample)
}
