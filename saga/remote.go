package saga

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// startCall makes the call whose intent was committed, outside any transaction.
func (r *run) startCall(ctx context.Context, t *task, a act, from entry) {
	r.calls.Add(1)
	go func() {
		defer r.calls.Done()
		ev, err := r.call(ctx, t, a)
		if err != nil {
			r.kill(err)
			return
		}
		ev.from = from
		t.ev = ev
		t.s.survived()
		r.metrics.call(ctx, t.s, a, ev)
		if errors.Is(ev.err, ErrFenced) {
			r.queue.freeSlot(t)
			r.lost(ctx, t)
			return
		}
		for range r.queue.returned(t) {
			r.lost(ctx, t)
		}
	}()
}

// call runs the function with its own timeout, which neither a cancel of the saga nor its deadline cuts short.
func (r *run) call(ctx context.Context, t *task, a act) (*event, error) {
	spec, alive := t.s.spec(), ctx
	ctx, cancel := r.callContext(ctx, t, spec.timeout)
	defer cancel()
	c := newCall(t.s, t.claim, a == actUndoSend)
	c.pool = r.pool
	c.share = func(ctx context.Context, raw json.RawMessage) bool { return r.saves.share(ctx, alive, c, raw) }
	in := t.s.in
	ev := &event{step: t.s.step, undo: a == actUndoSend, asked: a == actAsk}
	ev.attempt = t.s.journal[entryKey{ev.step, ev.undo}].attempt
	label := map[act]string{actSend: "call ", actAsk: "ask ", actUndoSend: "undo "}[a] + spec.name
	if err := crash.At(ctx, crash.BeforeCall, label); err != nil {
		return nil, err
	}
	start := time.Now()
	ev.err = guard(func() (err error) {
		switch a {
		case actSend:
			var result any
			if result, err = spec.call(ctx, &in, c); err == nil {
				ev.answer = FoundSucceeded(result)
			}
		case actAsk:
			ev.answer, err = spec.query(ctx, &in, c)
		default:
			err = spec.undoCall(ctx, &in, c)
		}
		return err
	})
	ev.duration = time.Since(start)
	if ev.answer.err == nil && bytes.Contains(ev.answer.result, []byte(`\u0000`)) {
		ev.answer.err = errors.New("the result holds a NUL, which the journal cannot")
	}
	if ev.answer.err != nil {
		ev.answer.err = Stuck(fmt.Errorf("result of %s: %w", spec.name, ev.answer.err))
	}
	ev.saved = c.saved
	if errors.Is(ev.err, crash.ErrKilled) {
		return nil, ev.err
	}
	return ev, crash.At(ctx, crash.AfterCall, label)
}

// lost forgets a task whose lane another engine holds. If its call succeeded, the other engine may already have
// compensated without knowing: it is told, so that the late success is undone.
func (r *run) lost(ctx context.Context, t *task) {
	r.queue.drop(t)
	r.metrics.fenced(ctx)
	r.log.WarnContext(ctx, "lane lost to another engine", "saga_id", t.s.in.ID, "step", t.s.in.Step)
	ev := t.ev
	if ev == nil || ev.effect() != effectRecord || t.s.def == nil {
		return
	}
	err := commit(ctx, "late success", func() error {
		return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
			return Settle(ctx, tx, t.s.in.ID, t.s.def.steps[ev.step].name, ev.answer)
		})
	})
	if errors.Is(err, crash.ErrKilled) {
		r.kill(err)
	} else if err != nil {
		r.log.ErrorContext(ctx, "a late success could not be stored", "saga_id", t.s.in.ID, "step", t.s.in.Step, "error", err)
	}
}

// validText makes text that Postgres stores.
func validText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
