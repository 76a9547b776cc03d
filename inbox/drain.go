package inbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	drainWorkers = 2
	drainTurn    = 100 // messages of one key in a row: then the others that are due have their turn
)

// hold is a key claimed for draining.
type hold struct {
	topic, key string
	token      uuid.UUID
	tries      int
	until      time.Time // when the handler of the head has to end, well before the lease does
}

// evidence remembers how many messages of a type had succeeded at the last try of a key's head.
type evidence struct {
	mu   sync.Mutex
	seen map[[2]string]int64
}

// swap returns what was noted for a key, and notes now.
func (e *evidence) swap(h hold, now int64) (before int64, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, known = e.seen[[2]string{h.topic, h.key}]
	e.seen[[2]string{h.topic, h.key}] = now
	return before, known
}

func (e *evidence) forget(h hold) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.seen, [2]string{h.topic, h.key})
}

// drainLoop works held keys that are due until ctx ends; the key at work gets to the end of its message under work.
func (c *Consumer) drainLoop(ctx, work context.Context) {
	c.wakeSupported(ctx)
	var workers sync.WaitGroup
	for range drainWorkers {
		workers.Go(func() { c.drainWorker(ctx, work) })
	}
	workers.Wait()
}

func (c *Consumer) drainWorker(ctx, work context.Context) {
	tick := time.NewTicker(c.opts.DrainEvery)
	defer tick.Stop()
	for {
		if c.drain(ctx, work) && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// wakeSupported makes heads due that were held for want of a route this program has: a deploy releases them.
func (c *Consumer) wakeSupported(ctx context.Context) {
	topics, types := c.routes.routed()
	_, err := c.pool.Exec(ctx, c.store.sql(`
		UPDATE {inbox_holds} SET next_at = now()
		WHERE consumer_group = $1 AND state = 'held' AND error_class = $2
		  AND (topic, type) IN (SELECT * FROM unnest($3::text[], $4::text[]))`),
		c.group, ClassUnsupportedVersion, topics, types)
	if err != nil && ctx.Err() == nil {
		c.opts.Log.WarnContext(ctx, "held newer versions not looked at, they are due later", "error", err)
	}
}

// drain claims the hold that is due longest and works it. It reports whether there was one. A worker claims what it works
// at once: a hold that waits in here behind a long line would use up its lease.
func (c *Consumer) drain(ctx, work context.Context) bool {
	if c.circuit.openError() != nil && !c.circuit.due(time.Now()) {
		return false
	}
	h, found, err := c.claim(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.opts.Log.WarnContext(ctx, "held keys not drained, will retry", "error", err)
		}
		return false
	}
	if !found {
		return false
	}
	if err := c.drainKey(ctx, work, h); err != nil && ctx.Err() == nil {
		c.opts.Log.WarnContext(work, "held key not drained, will retry", "topic", h.topic, "error", err)
	}
	return true
}

// readable is the condition for a hold whose head is not left to another version of the program. $2 is
// [ClassUnsupportedVersion], $3 and $4 are the topics and types of the routes.
const readable = `(error_class IS DISTINCT FROM $2 OR (topic, type) IN (SELECT * FROM unnest($3::text[], $4::text[])))`

func (c *Consumer) claim(ctx context.Context) (h hold, found bool, err error) {
	h.token = uuid.New()
	topics, types := c.routes.routed()
	err = c.pool.QueryRow(ctx, c.store.sql(`
		WITH due AS (
			SELECT topic, key FROM {inbox_holds}
			WHERE consumer_group = $1 AND state = 'held'
			  AND next_at <= now() AND (leased_until IS NULL OR leased_until < now())
			  AND `+readable+`
			ORDER BY next_at
			LIMIT 1
			FOR UPDATE SKIP LOCKED
		)
		UPDATE {inbox_holds} h
		SET lease_token = $5::text::uuid, leased_until = now() + $6 * interval '1 millisecond'
		FROM due
		WHERE h.consumer_group = $1 AND h.topic = due.topic AND h.key = due.key
		RETURNING h.topic, h.key, h.tries`),
		c.group, ClassUnsupportedVersion, topics, types, h.token.String(), c.opts.Lease.Milliseconds(),
	).Scan(&h.topic, &h.key, &h.tries)
	if errors.Is(err, pgx.ErrNoRows) {
		return hold{}, false, nil
	}
	if err != nil {
		return hold{}, false, fmt.Errorf("claim a hold: %w", err)
	}
	return h, true, nil
}

// drainKey works the line of one key, head first, until it is empty, its head fails, or it has had its turn.
func (c *Consumer) drainKey(ctx, work context.Context, h hold) error {
	until := time.Now().Add(c.opts.Lease / 2)
	h.until = c.handlerUntil()
	for reruns, worked := 0, 0; ctx.Err() == nil && worked < drainTurn && time.Now().Before(until); {
		wait, probe := c.circuit.permit(time.Now())
		if wait > 0 {
			return c.store.postpone(work, c.pool, h, wait)
		}
		more, err := c.drainHead(work, &h, probe)
		switch {
		case rerunnable(err) && reruns < maxReruns:
			reruns++
			if probe {
				c.circuit.skip()
			}
			pause(work, 10*time.Millisecond)
		case err != nil:
			c.circuit.fail(err, probe)
			return errors.Join(err, c.store.postpone(work, c.pool, h, c.opts.RetryMin))
		case !more:
			return nil
		default:
			reruns = 0
			worked++
			h.until = c.handlerUntil()
		}
	}
	return c.store.postpone(work, c.pool, h, 0)
}

// handlerUntil is when the handler of a head has to end whose lease begins now. What is left is for the rollback, and for
// booking the try.
func (c *Consumer) handlerUntil() time.Time { return time.Now().Add(c.opts.Lease - c.opts.Lease/5) }

// errFenced says that another drainer, or a person, has the key now.
var errFenced = errors.New("lease lost")

// drainHead tries the head of a key. more is true when the next message of the key may be tried now.
func (c *Consumer) drainHead(ctx context.Context, h *hold, probe bool) (more bool, err error) {
	head, err := c.head(ctx, *h)
	if err != nil {
		return false, err
	}
	if head == nil || head.state == StateDead {
		c.circuit.succeed(probe, false)
		c.headLeft(h)
		return false, c.store.rest(ctx, c.pool, *h)
	}
	failed := head.item.verdict
	if failed == nil {
		failed, err = c.drainApply(ctx, *h, head)
	}
	switch {
	case errors.Is(err, errFenced):
		c.circuit.succeed(probe, false)
		c.leaseLost(ctx, h)
		return false, nil
	case err != nil:
		return false, err
	case failed == nil:
		c.circuit.succeed(probe, true)
		c.health.success(&head.item.msg, time.Now())
		c.meters.count(ctx, h.topic, "replayed", 1)
		c.headLeft(h)
		c.opts.AfterBatch()
		return true, nil
	}
	c.circuit.succeed(probe, false)
	return c.drainFailed(ctx, h, head, failed)
}

// leaseLost notes that what was done with a head is rolled back, for somebody else has the key.
func (c *Consumer) leaseLost(ctx context.Context, h *hold) {
	c.headLeft(h)
	c.opts.Log.WarnContext(ctx, "lease of a held key lost, its message is rolled back", "topic", h.topic)
}

// headLeft forgets the tries of a head that is gone, dead or somebody else's: they say nothing about the next one.
func (c *Consumer) headLeft(h *hold) {
	h.tries = 0
	c.tried.forget(*h)
}

// drainApply runs the handler and settles the message in one transaction. failed is the handler's verdict; err says
// that nobody is to blame.
func (c *Consumer) drainApply(ctx context.Context, h hold, head *parkedHead) (failed, err error) {
	tx, err := c.pool.Begin(ctx)
	if err != nil {
		return nil, Outage(fmt.Errorf("begin drain: %w", err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // after a commit this does nothing
	}()
	if err := c.drainInvoke(ctx, tx, h, head); err != nil {
		if ctx.Err() != nil || rerunnable(err) || judge(err).kind == outage {
			return nil, err
		}
		return err, nil
	}
	if err := c.store.unpark(ctx, tx, h, head, "done"); err != nil {
		// A handler that swallowed an error of its transaction fails here: its message is to blame.
		if inFailedTx(err) {
			return err, nil
		}
		return nil, err
	}
	if err := tx.Commit(ctx); err != nil {
		if violated(err) {
			return err, nil
		}
		return nil, fmt.Errorf("commit drain: %w", err)
	}
	return nil, nil
}

// drainInvoke runs the handler of a head for as long as the lease allows. A longer one has failed: the next drainer would take
// the key over, run it again, and so on.
func (c *Consumer) drainInvoke(ctx context.Context, tx pgx.Tx, h hold, head *parkedHead) error {
	limited, cancel := context.WithDeadline(ctx, h.until)
	defer cancel()
	err := c.invoke(limited, tx, head.item.route, []*item{head.item})
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		// Not wrapped: that the connection is gone too, when it was a query that ended, is no outage.
		return WithClass(ClassSlowHandler, errors.New("took longer than a lease of "+c.opts.Lease.String()+" allows: "+err.Error()))
	}
	return callError(tx, err)
}

// drainFailed books a failed try of a head.
func (c *Consumer) drainFailed(ctx context.Context, h *hold, head *parkedHead, failed error) (more bool, err error) {
	now := time.Now()
	v := judge(failed)
	it := head.item
	c.logPanic(&it.msg, v, it.attempts+1)
	f := newFailure(v, it.attempts+1, it.firstFailed, now)
	if v.kind == discard {
		c.headLeft(h)
		return true, c.dropHead(ctx, *h, head, v.err.Error())
	}
	counted := head.counted
	if c.countsTowardDead(ctx, *h, it, f.fingerprint) {
		counted++
	}
	gone := v.kind == permanent && (v.sure || c.health.mayDie(&it.msg, 0, now)) ||
		v.kind != held && v.kind != permanent && counted >= c.opts.MaxTries
	next := halfJitter(c.opts.RetryMin, 4, h.tries+1, c.opts.RetryMax)
	if v.kind == retryAfter {
		next = v.after
	}
	if v.kind == held {
		next = c.opts.RetryMax
	}
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if err := c.store.fence(ctx, tx, *h); err != nil {
			return err
		}
		return c.store.failHead(ctx, tx, *h, head, f, counted, gone, next)
	})
	if errors.Is(err, errFenced) {
		c.leaseLost(ctx, h)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("book failed try: %w", err)
	}
	if v.kind == permanent && !v.sure {
		c.health.permanent(&it.msg, now) // after a bad deploy they come in here one by one
	}
	pk := parking{item: it, state: StateHeld, failure: f}
	if gone {
		pk.state = StateDead
		c.headLeft(h)
		c.meters.count(ctx, h.topic, "dead", 1)
		c.opts.AfterBatch() // the copy wants to be published
	}
	c.logParked(ctx, pk)
	return gone && it.route.Policy == ReleaseKey, nil
}

// countsTowardDead reports whether a failed try is the message's own fault: others of its type succeeded since its last
// try, and few keys fail the same way.
func (c *Consumer) countsTowardDead(ctx context.Context, h hold, it *item, fingerprint string) bool {
	if c.opts.Evidence < 0 {
		return true
	}
	now := c.health.successes(it.msg.Topic, it.msg.Type)
	before, known := c.tried.swap(h, now)
	if !known || now-before < int64(c.opts.Evidence) {
		return false
	}
	var same int
	err := c.pool.QueryRow(ctx, c.store.sql(`
		SELECT count(*) FROM {inbox_holds} WHERE consumer_group = $1 AND fingerprint = $2`), c.group, fingerprint).Scan(&same)
	return err == nil && same < max(50, c.health.activeKeys()/50)
}

// dropHead discards the head on the handler's word.
func (c *Consumer) dropHead(ctx context.Context, h hold, head *parkedHead, reason string) error {
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if err := c.store.unpark(ctx, tx, h, head, "discarded"); err != nil {
			return err
		}
		return c.store.audit(ctx, tx, auditRow{
			action: "discard", topic: h.topic, key: h.key, eventID: head.item.dedupID, parkedID: head.id, reason: reason, by: "handler",
		})
	})
	if err != nil && !errors.Is(err, errFenced) {
		return fmt.Errorf("discard head: %w", err)
	}
	return nil
}
