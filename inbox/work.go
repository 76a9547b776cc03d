package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Why a transaction over a batch did not commit, beside outages and victims of Postgres.
var (
	errGuard = errors.New("a message failed, run the batch with savepoints")
	errSplit = errors.New("the commit failed, run the messages one by one")
)

// maxReruns is how often a batch that Postgres chose as a victim runs again before the circuit opens.
const maxReruns = 10

// work runs batches until the lanes are closed.
func (c *Consumer) work(ctx context.Context) {
	for {
		b := c.lanes.take()
		if b == nil {
			return
		}
		c.process(ctx, b)
	}
}

// process runs a batch until it commits, or cannot now.
func (c *Consumer) process(ctx context.Context, b *batch) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !c.lanes.arm(b, cancel) {
		c.giveBack(b)
		return
	}
	p := &pass{c: c, route: b.route, items: b.items, guarded: b.route.limit.isGuarded(), spill: b.spill}
	for reruns := 0; ; {
		err := p.run(ctx)
		switch {
		case err == nil:
			c.committed(ctx, b, p)
			return
		case ctx.Err() != nil:
			c.giveBack(b)
			return
		case errors.Is(err, errGuard):
			b.route.limit.guard()
			p.guarded = true
		case errors.Is(err, errSplit) && len(b.items) > 1:
			b.route.limit.shrink()
			c.giveBack(b)
			return
		case errors.Is(err, errSplit):
			p.forced, p.guarded = err, true
		case rerunnable(err) && reruns < maxReruns:
			reruns++
			c.meters.rerun(ctx, b.route.Topic)
			c.opts.Log.DebugContext(ctx, "batch runs again", "topic", b.route.Topic, "error", err)
			if deadlocked(err) && b.route.HandleBatch != nil && len(b.items) > 1 {
				b.route.limit.shrink()
				c.giveBack(b)
				return
			}
			pause(ctx, fullJitter(20*time.Millisecond, 1, 0, time.Second))
		default:
			c.circuit.fail(err, b.probe)
			c.giveBack(b)
			return
		}
	}
}

// committed books what a committed pass decided.
func (c *Consumer) committed(ctx context.Context, b *batch, p *pass) {
	now := time.Now()
	counts := map[fate]int{}
	for _, it := range p.items {
		d := p.fates[it]
		counts[d.fate]++
		switch d.fate {
		case done:
			c.health.success(&it.msg, now)
		case dead, heldFate:
			c.noteFailure(&it.msg, d, now)
		case waits:
			if d.failed {
				it.attempts++
				it.class = d.failure.class
				if it.firstFailed.IsZero() {
					it.firstFailed = now
				}
			}
		case duplicate, waiting, discarded, left: // say nothing about a handler
		}
	}
	b.route.limit.committed()
	c.circuit.succeed(b.probe, counts[done]+counts[duplicate] > 0)
	c.lanes.finish(b,
		func(it *item) bool { return p.fates[it].fate != waits },
		func(it *item) decision { return p.fates[it] })
	c.noteRoom(ctx, b.route.Topic, p)
	for f, n := range counts {
		if f != waits {
			c.meters.count(ctx, b.route.Topic, f.String(), n)
		}
	}
	c.meters.batch(ctx, b.route.Topic, now.Sub(b.started))
	c.opts.AfterBatch()
}

// noteFailure tells health about a message that was parked. Messages that no handler could apply say nothing about one.
func (c *Consumer) noteFailure(m *Message, d decision, now time.Time) {
	switch {
	case d.kind == permanent && !d.sure:
		c.health.permanent(m, now)
	case d.kind == transient || d.kind == retryAfter:
		c.health.held(now)
	}
}

// giveBack returns a batch of which nothing was committed.
func (c *Consumer) giveBack(b *batch) {
	if b.probe {
		c.circuit.skip()
	}
	c.lanes.finish(b, func(*item) bool { return false }, func(*item) decision { return decision{} })
}

// run is one transaction over the batch. The order of its statements is the lock protocol.
func (p *pass) run(ctx context.Context) error {
	p.fresh, p.subtx = nil, 0
	p.fates, p.blocked = make(map[*item]decision, len(p.items)), map[string]decision{}
	tx, err := p.c.pool.Begin(ctx)
	if err != nil {
		return Outage(fmt.Errorf("begin batch: %w", err))
	}
	// A rollback must reach the server even when ctx is what ended the batch.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // after a commit this does nothing
	}()
	p.tx = tx
	for _, step := range []func(context.Context) error{p.fits, p.dedup, p.leave, p.holds, p.handle, p.settle} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return p.commit(ctx)
}

func (p *pass) commit(ctx context.Context) error {
	err := p.tx.Commit(ctx)
	if err == nil {
		return nil
	}
	if errors.Is(err, pgx.ErrTxCommitRollback) { // a handler swallowed an error of its transaction
		if !p.guarded {
			return errGuard
		}
		return fmt.Errorf("%w: %w", errSplit, err)
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if ok && len(pg.Code) == 5 && pg.Code[:2] == "23" { // a deferred constraint
		return fmt.Errorf("%w: %w", errSplit, err)
	}
	return fmt.Errorf("commit batch: %w", err)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
