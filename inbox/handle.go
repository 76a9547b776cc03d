package inbox

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/propagation"
)

const (
	chunkSize = 10 // messages that share a savepoint after a failure
	// maxSubtx bounds the subtransactions of a transaction: beyond 64, every snapshot of the server gets slower.
	maxSubtx     = 60
	inlineWindow = 2 * time.Second
	inlineMin    = 50 * time.Millisecond
)

// handle calls the handlers. Clean, it stops at the first failure; guarded, it isolates failures in savepoints.
func (p *pass) handle(ctx context.Context) error {
	switch {
	case p.spill && p.spilled():
		return nil
	case p.guarded && p.route.HandleBatch != nil:
		return p.bisect(ctx, p.fresh)
	case p.guarded:
		for chunk := range slices.Chunk(p.fresh, chunkSize) {
			if err := p.chunk(ctx, chunk); err != nil {
				return err
			}
		}
		return nil
	}
	err := p.call(ctx, p.tx, p.runnable(p.fresh))
	if err == nil || p.fatal(ctx, err) {
		return err
	}
	return errGuard
}

var errSlowKey = errors.New("the key is slow and would have stopped its partition")

// spilled gives the message of a slow key the fate of a held one that is due, before a handler sees it. It reports false for
// one that has a verdict, or whose key is held already: those need no handler.
func (p *pass) spilled() bool {
	run := p.runnable(p.fresh)
	if len(run) != 1 || run[0].verdict != nil {
		return false
	}
	now := time.Now()
	p.fates[run[0]] = decision{
		fate: heldFate, kind: held,
		failure: newFailure(handlerError{class: ClassSlowKey, err: errSlowKey}, run[0].attempts, run[0].firstFailed, now),
	}
	return true
}

// runnable returns the messages of items whose key is not blocked, and gives the others the fate of their key.
func (p *pass) runnable(items []*item) []*item {
	run := make([]*item, 0, len(items))
	for _, it := range items {
		if d, ok := p.blocked[it.key]; ok {
			p.fates[it] = d
			continue
		}
		run = append(run, it)
	}
	return run
}

// chunk runs messages in one savepoint; if one fails, again one by one.
func (p *pass) chunk(ctx context.Context, items []*item) error {
	if items = p.runnable(items); len(items) == 0 {
		return nil
	}
	if len(items) > 1 && p.subtx < maxSubtx {
		err := p.inSavepoint(ctx, items)
		if err == nil || p.fatal(ctx, err) {
			return err
		}
	}
	for _, it := range items {
		if err := p.single(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// bisect runs messages of a batch handler; if they fail, again in halves, the first half first: order inside a key.
func (p *pass) bisect(ctx context.Context, items []*item) error {
	items = p.runnable(items)
	switch len(items) {
	case 0:
		return nil
	case 1:
		return p.single(ctx, items[0])
	}
	if p.subtx >= maxSubtx {
		p.postpone(items)
		return nil
	}
	err := p.inSavepoint(ctx, items)
	if err == nil || p.fatal(ctx, err) {
		return err
	}
	if err := p.bisect(ctx, items[:len(items)/2]); err != nil {
		return err
	}
	return p.bisect(ctx, items[len(items)/2:])
}

// single runs one message and decides on its failure.
func (p *pass) single(ctx context.Context, it *item) error {
	if len(p.runnable([]*item{it})) == 0 {
		return nil
	}
	if p.subtx >= maxSubtx && it.verdict == nil {
		p.postpone([]*item{it})
		return nil
	}
	err := it.verdict
	if err == nil {
		err = p.inSavepoint(ctx, []*item{it})
	}
	if err == nil {
		return nil
	}
	if p.fatal(ctx, err) {
		return err
	}
	return p.decide(it, err)
}

// postpone leaves messages, and what follows them, to the next transaction.
func (p *pass) postpone(items []*item) {
	for _, it := range items {
		p.fates[it] = decision{fate: waits}
		p.blocked[it.key] = decision{fate: waits}
	}
}

// inSavepoint calls the handler inside a savepoint, which is rolled back when it fails.
func (p *pass) inSavepoint(ctx context.Context, items []*item) error {
	p.subtx++
	if _, err := p.tx.Exec(ctx, `SAVEPOINT inbox`); err != nil {
		return Outage(fmt.Errorf("savepoint: %w", callError(p.tx, err)))
	}
	err := p.call(ctx, p.tx, items)
	if err == nil {
		_, err = p.tx.Exec(ctx, `RELEASE SAVEPOINT inbox`) // fails when a handler swallowed an error of the transaction
	}
	if err == nil {
		return nil
	}
	for _, it := range items {
		delete(p.fates, it)
	}
	if _, rbErr := p.tx.Exec(ctx, `ROLLBACK TO SAVEPOINT inbox; RELEASE SAVEPOINT inbox`); rbErr != nil {
		return Outage(fmt.Errorf("roll back to savepoint: %w", errors.Join(callError(p.tx, rbErr), err)))
	}
	return err
}

// call runs the handler of the route on messages whose fate becomes done.
func (p *pass) call(ctx context.Context, tx pgx.Tx, items []*item) error {
	for _, it := range items {
		if it.verdict != nil {
			return it.verdict
		}
	}
	if len(items) == 0 {
		return nil
	}
	if p.forced != nil {
		return p.forced
	}
	if err := p.c.invoke(ctx, tx, p.route, items); err != nil {
		return callError(tx, err)
	}
	for _, it := range items {
		p.fates[it] = decision{fate: done}
	}
	return nil
}

// fatal reports whether err ends the whole transaction: no message is to blame.
func (p *pass) fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || rerunnable(err) || judge(err).kind == outage
}

// invoke calls the handlers of rt and turns a panic into an error.
func (c *Consumer) invoke(ctx context.Context, tx pgx.Tx, rt *route, items []*item) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicError(v, debug.Stack())
		}
	}()
	if rt.HandleBatch != nil {
		msgs := make([]Message, len(items))
		for i, it := range items {
			msgs[i] = it.message()
		}
		return rt.HandleBatch(ctx, tx, msgs)
	}
	for _, it := range items {
		began := time.Now()
		err := rt.Handle(traced(ctx, &it.msg), tx, it.message())
		it.took = time.Since(began)
		if err != nil {
			return err
		}
	}
	return nil
}

func (it *item) message() Message {
	m := it.msg
	m.Attempt = it.attempts + 1
	return m
}

// traced continues the trace of the message's producer. A traceparent that cannot be read starts none.
func traced(ctx context.Context, m *Message) context.Context {
	parent := m.Header("traceparent")
	if parent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent, "tracestate": m.Header("tracestate")})
}

// decide gives a failed message its fate, and the rest of its key theirs.
func (p *pass) decide(it *item, err error) error {
	now := time.Now()
	v := judge(err)
	attempts := it.attempts + 1
	p.c.logPanic(&it.msg, v, attempts)
	d := decision{failed: true, kind: v.kind, sure: v.sure, failure: newFailure(v, attempts, it.firstFailed, now)}
	left := inlineWindow
	if !it.firstFailed.IsZero() {
		left -= now.Sub(it.firstFailed)
	}
	again := attempts < p.c.opts.InlineAttempts && left > 0
	switch {
	case v.kind == discard:
		d.fate, d.reason = discarded, v.err.Error()
	case v.kind == permanent && (v.sure || p.c.health.mayDie(&it.msg, p.count(func(d decision) bool { return d.kind == permanent && !d.sure }), now)):
		d.fate = dead
	case v.kind == permanent || v.kind == held:
		d.fate, d.nextTry = heldFate, p.c.opts.RetryMax
	case again && v.kind == retryAfter && v.after <= left:
		d.fate, d.retryIn = waits, v.after
	case again && v.kind == transient:
		d.fate, d.retryIn = waits, fullJitter(inlineMin, 4, attempts, left)
	case !p.c.health.mayHold(p.count(func(d decision) bool { return d.fate == heldFate }), now):
		return fmt.Errorf("%w: %w", errTooManyHolds, err)
	default:
		d.fate, d.nextTry = heldFate, halfJitter(p.c.opts.RetryMin, 1, 0, p.c.opts.RetryMax)
		if v.kind == retryAfter {
			d.nextTry = v.after
		}
	}
	p.fates[it] = d
	switch {
	case d.fate == discarded, d.fate == dead && it.route.Policy == ReleaseKey:
	case d.fate == waits:
		p.blocked[it.key] = decision{fate: waits, retryIn: d.retryIn}
	default:
		p.blocked[it.key] = decision{fate: waiting}
	}
	return nil
}

// count returns how many decisions of the pass so far are such.
func (p *pass) count(such func(decision) bool) int {
	n := 0
	for _, d := range p.fates {
		if such(d) {
			n++
		}
	}
	return n
}

func (c *Consumer) logParked(ctx context.Context, pk parking) {
	m := &pk.item.msg
	attrs := []any{"topic", m.Topic, "partition", m.Partition, "offset", m.Offset, "message_id", pk.item.dedupID,
		"type", m.Type, "attempt", pk.failure.attempts, "class", pk.failure.class}
	if pk.state == StateDead {
		c.opts.Log.ErrorContext(ctx, "message is dead", attrs...)
		return
	}
	c.opts.Log.WarnContext(ctx, "message parked, will retry", attrs...)
}

// logPanic logs where a handler panicked: somebody must mend it.
func (c *Consumer) logPanic(m *Message, v handlerError, attempt int) {
	if v.stack != "" {
		c.opts.Log.Error("handler panicked", "topic", m.Topic, "partition", m.Partition, "offset", m.Offset,
			"message_id", m.ID, "type", m.Type, "attempt", attempt, "stack", v.stack)
	}
}
