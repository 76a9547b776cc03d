package saga

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// maxSavepoints keeps a transaction below the 64 subtransactions that Postgres tracks without spilling.
const maxSavepoints = 60

// unit is one task's part of a transaction.
type unit struct {
	t    *task
	s    *state // the draft
	act  act
	from entry // the journal's entry before the intent, for actSend
	slot bool
	// put off to a transaction of its own, or to the next one
	again bool
}

// transact takes tasks one transaction further: what calls said is recorded, local steps are run until there are none,
// and the intents of the calls to come are journaled. After the commit the calls start. It reports whether it committed;
// if so, the tasks may be in other hands by now.
func (r *run) transact(ctx context.Context, tasks []*task) (committed bool, err error) {
	tx, err := r.pool.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	b := &batch{run: r, tx: tx}
	defer func() {
		_ = tx.Rollback(ctx)
		if err != nil {
			b.freeSlots()
		}
	}()
	if err := b.fence(ctx, tasks); err != nil {
		return false, err
	}
	if len(b.units) == 0 {
		// Rolled back first: a row that was locked, and then found to be another engine's, stays locked until then.
		_ = tx.Rollback(ctx)
		b.dispatch(ctx)
		return false, nil
	}
	if err := b.advance(ctx); err != nil {
		return false, err
	}
	if err := b.flush(ctx); err != nil {
		return false, err
	}
	err = commit(ctx, b.label(), func() error {
		if err := tx.Commit(ctx); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		committed = true
		return nil
	})
	if err != nil {
		return committed, err
	}
	b.dispatch(ctx)
	return true, nil
}

// batch is a transaction over the tasks of one group.
type batch struct {
	*run
	tx     pgx.Tx
	now    time.Time
	units  []*unit
	locked []*task // somebody else is writing the lane's row
	fenced []*task // the lane is not ours any more

	savepoints int
	unreleased string // the statement for the last one
}

// fence locks the lanes that are still ours. It waits for nobody, so it cannot deadlock with transactions that start
// or cancel sagas; a lane whose row is locked is tried again.
func (b *batch) fence(ctx context.Context, tasks []*task) error {
	var (
		claims []claim
		ids    uuids
		byID   = map[uuid.UUID]*task{}
	)
	for _, t := range tasks {
		claims, ids, byID[t.s.in.ID] = append(claims, t.claim), append(ids, pgID(t.s.in.ID)), t
	}
	lanes, tokens, revs := columns(claims)
	got := map[string]bool{}
	var q pgx.Batch
	q.Queue(`
		SELECT l.lane, clock_timestamp() FROM saga_lanes l
		JOIN unnest($1::text[], $2::uuid[], $3::bigint[]) AS c(lane, token, rev)
			ON l.lane = c.lane AND l.token = c.token AND l.rev = c.rev
		FOR UPDATE OF l SKIP LOCKED`, lanes, tokens, revs).Query(func(rows pgx.Rows) error {
		var lane string
		_, err := pgx.ForEachRow(rows, []any{&lane, &b.now}, func() error {
			got[lane] = true
			return nil
		})
		return err
	})
	// A statement of its own: its snapshot is taken after the lanes are locked, so it sees every cancel that was
	// committed before. One that comes later waits for this transaction, and finds the lane as it leaves it.
	q.Queue(`
		SELECT id, cancel_requested_at IS NOT NULL, rev FROM saga_instances WHERE id = ANY($1)`,
		ids).Query(func(rows pgx.Rows) error {
		var (
			id        uuid.UUID
			cancelled bool
			rev       int64
		)
		_, err := pgx.ForEachRow(rows, []any{idInto(&id), &cancelled, &rev}, func() error {
			t := byID[id]
			if got[t.lane] {
				s := t.s.draft()
				s.in.CancelRequested, s.in.Rev = cancelled, rev
				b.units = append(b.units, &unit{t: t, s: s})
			}
			return nil
		})
		return err
	})
	if err := b.tx.SendBatch(ctx, &q).Close(); err != nil {
		return fmt.Errorf("lock lanes: %w", err)
	}
	if len(b.units) == len(tasks) {
		return nil
	}
	return b.sortOut(ctx, tasks, got)
}

// sortOut tells lanes that are locked for the moment from those that are lost.
func (b *batch) sortOut(ctx context.Context, tasks []*task, got map[string]bool) error {
	var missing []claim
	for _, t := range tasks {
		if !got[t.lane] {
			missing = append(missing, t.claim)
		}
	}
	held, err := stillHeld(ctx, b.tx, missing)
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, lane := range held {
		ours[lane] = true
	}
	for _, t := range tasks {
		switch {
		case got[t.lane]:
		case ours[t.lane]:
			b.locked = append(b.locked, t)
		default:
			b.fenced = append(b.fenced, t)
		}
	}
	return nil
}

func (r *run) stillHeld(ctx context.Context, claims []claim) ([]string, error) {
	return stillHeld(ctx, r.pool, claims)
}

func stillHeld(ctx context.Context, db Querier, claims []claim) ([]string, error) {
	lanes, tokens, revs := columns(claims)
	rows, _ := db.Query(ctx, `
		SELECT l.lane FROM saga_lanes l
		JOIN unnest($1::text[], $2::uuid[], $3::bigint[]) AS c(lane, token, rev)
			ON l.lane = c.lane AND l.token = c.token AND l.rev = c.rev`, lanes, tokens, revs)
	held, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("check leases: %w", err)
	}
	return held, nil
}

// advance takes every unit to where it has to leave the transaction.
func (b *batch) advance(ctx context.Context) error {
	for _, u := range b.units {
		if err := b.takeEvent(ctx, u); err != nil {
			return err
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		steps := b.localSteps()
		if len(steps) == 0 {
			break
		}
		for _, units := range steps {
			if err := b.runLocal(ctx, units); err != nil {
				return err
			}
		}
	}
	for _, u := range b.units {
		b.leave(u)
	}
	return nil
}

// takeEvent brings in what a call said, with what the definition records with it.
func (b *batch) takeEvent(ctx context.Context, u *unit) error {
	s, ev := u.s, u.t.ev
	if ev == nil || !ev.fits(s) {
		if s.deaths() >= b.opts.MaxCrashes {
			s.halt(haltCrashes, "engines died again and again at this step")
		}
		return nil
	}
	spec := s.def.steps[ev.step]
	var record LocalFunc
	switch effect := ev.effect(); {
	case effect == effectRecord && spec.record != nil:
		record = func(ctx context.Context, tx pgx.Tx, in *Instance) error {
			return spec.record(ctx, tx, in, ev.answer.result)
		}
	case effect == effectRecordUndo:
		record = spec.recordUndo
	}
	if record == nil {
		s.take(ev, b.now, b.opts)
		return nil
	}
	failure, err := b.isolated(ctx, u, record)
	if err != nil {
		return err
	}
	if failure == nil {
		s.take(ev, b.now, b.opts)
		return nil
	}
	// The outcome stays unknown in the journal and is asked for again; it is not lost.
	b.unrecorded(s, ev, fmt.Errorf("record %s: %w", spec.name, failure))
	return nil
}

func (b *batch) unrecorded(s *state, ev *event, failure error) {
	k := entryKey{ev.step, ev.undo}
	e := s.journal[k]
	e.state, e.err = EntryUnknown, clip(failure.Error())
	if !ev.undo {
		e.saved = ev.saved
	}
	s.put(k.step, k.undo, e)
	var stuck *stuckError
	if errors.As(failure, &stuck) {
		s.halt(haltError, clip(failure.Error()))
		return
	}
	s.failed(failure, b.opts.MaxAttempts, b.opts.backoff)
}

// localSteps decides for each unit what is next, and groups those that run in this transaction by their step.
func (b *batch) localSteps() [][]*unit {
	at := map[groupKey]int{}
	var steps [][]*unit
	for _, u := range b.units {
		if u.again {
			continue
		}
		u.act = u.s.next(b.now)
		if u.act != actLocal && u.act != actUndo && u.act != actEnd {
			continue
		}
		if b.savepoints >= maxSavepoints {
			u.again = true
			continue
		}
		k := groupKey{def: u.s.def, step: u.s.step, undo: u.act != actLocal}
		i, ok := at[k]
		if !ok {
			i = len(steps)
			at[k] = i
			steps = append(steps, nil)
		}
		steps[i] = append(steps[i], u)
	}
	return steps
}

// leave prepares how a unit leaves the transaction: with the intent of a call, if there is room for one.
func (b *batch) leave(u *unit) {
	if u.again {
		return
	}
	if !u.act.remote() {
		return
	}
	if u.slot = b.queue.slot(u.t); !u.slot {
		u.again = true
		return
	}
	if u.act != actAsk {
		u.from = u.s.intend(u.act == actUndoSend, b.now)
	}
	u.s.countCall()
}

func (b *batch) freeSlots() {
	for _, u := range b.units {
		if u.slot {
			b.queue.freeSlot(u.t)
		}
	}
}

// label names the transaction's content for crash points.
func (b *batch) label() string {
	u := b.units[0]
	label := string(u.s.in.State)
	if u.s.in.Step != "" {
		label += " " + u.s.in.Step
	}
	if u.slot && u.act != actAsk {
		label += " intent"
	}
	return label
}
