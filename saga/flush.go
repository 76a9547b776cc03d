package saga

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// noCodeEvery is how often an instance without code is looked at: another engine may have the code.
const noCodeEvery = 5 * time.Second

// flush writes the drafts. Every statement is fenced: by the lane's token and rev, which are locked, and by the
// instance's own rev.
func (b *batch) flush(ctx context.Context) error {
	var q pgx.Batch
	check := func(what string, want int) func(pgconn.CommandTag) error {
		return func(tag pgconn.CommandTag) error {
			if got := tag.RowsAffected(); got != int64(want) {
				return fmt.Errorf("write %s: %d of %d rows: %w", what, got, want, ErrFenced)
			}
			return nil
		}
	}
	b.flushJournal(&q)
	b.flushInstances(&q).Exec(check("instances", len(b.units)))
	if n, queued := b.flushLanes(&q); n > 0 {
		queued.Exec(check("lanes", n))
	}
	if err := b.tx.SendBatch(ctx, &q).Close(); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

func (b *batch) flushJournal(q *pgx.Batch) {
	var (
		ids                      uuids
		steps, attempts, losts   []int
		undos, answered          []bool
		names, states            []string
		keys, results, errs      []*string
		since, intents, outcomes []*time.Time
	)
	for _, u := range b.units {
		for k := range u.s.dirty {
			e, spec := u.s.journal[k], u.s.def.steps[k.step]
			var key *string
			if spec.remote {
				c := callKey(u.s.in.ID, spec.name, k.undo)
				key = &c
			}
			ids, steps, undos, names = append(ids, pgID(u.s.in.ID)), append(steps, k.step), append(undos, k.undo), append(names, spec.name)
			states, attempts, losts = append(states, string(e.state)), append(attempts, e.attempt), append(losts, e.lost)
			keys, since = append(keys, key), append(since, orNull(e.keySince))
			intents, outcomes = append(intents, orNull(e.intentAt)), append(outcomes, orNull(e.outcomeAt))
			results, errs = append(results, text(string(e.result))), append(errs, text(e.err))
			answered = append(answered, e.answered)
		}
	}
	if len(ids) == 0 {
		return
	}
	// saved is not written here: Save commits it on its own, while this engine holds the lane.
	q.Queue(`
		INSERT INTO saga_journal AS j
			(saga_id, step, undo, name, state, attempt, lost, key, key_since, intent_at, outcome_at, result, error)
		SELECT saga_id, step, undo, name, state, attempt, lost, key, key_since, intent_at, outcome_at, result::jsonb, error
		FROM unnest($1::uuid[], $2::int[], $3::bool[], $4::text[], $5::text[], $6::int[], $7::int[], $8::text[],
				$9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[])
			AS t(saga_id, step, undo, name, state, attempt, lost, key, key_since, intent_at, outcome_at, result, error)
		ON CONFLICT (saga_id, step, undo) DO UPDATE
		SET state = excluded.state, attempt = excluded.attempt, lost = excluded.lost, key_since = excluded.key_since,
			intent_at = excluded.intent_at, outcome_at = excluded.outcome_at, result = excluded.result,
			error = excluded.error`,
		ids, steps, undos, names, states, attempts, losts, keys, since, intents, outcomes, results, errs)
	for _, a := range answered {
		if a {
			q.Queue(`
				UPDATE saga_journal j SET answer = NULL
				FROM unnest($1::uuid[], $2::int[], $3::bool[], $4::bool[]) AS t(saga_id, step, undo, answered)
				WHERE j.saga_id = t.saga_id AND j.step = t.step AND j.undo = t.undo AND t.answered`,
				ids, steps, undos, answered)
			return
		}
	}
}

func (b *batch) flushInstances(q *pgx.Batch) *pgx.QueuedQuery {
	var (
		ids                                  uuids
		revs                                 []int64
		steps, attempts                      []int
		states, names                        []string
		kinds, failed, reasons, stucks, errs []*string
		forward, ended                       []bool
		started, deadlines                   []*time.Time
	)
	for _, u := range b.units {
		in := &u.s.in
		ids, revs = append(ids, pgID(in.ID)), append(revs, in.Rev)
		states, names = append(states, string(in.State)), append(names, in.Step)
		steps, attempts = append(steps, u.s.step), append(attempts, in.Attempt)
		kinds, failed = append(kinds, text(string(in.Failure.Kind))), append(failed, text(in.Failure.Step))
		reasons, stucks, errs = append(reasons, text(in.Failure.Reason)), append(stucks, text(u.s.stuckFor)), append(errs, text(in.Error))
		forward, ended = append(forward, in.ForwardOnly), append(ended, u.s.ended)
		started, deadlines = append(started, orNull(in.StartedAt)), append(deadlines, orNull(in.DeadlineAt))
		in.Rev++
		if was := u.t.s; was.in.State != in.State || was.step != u.s.step {
			in.UpdatedAt = b.now
		}
		u.s.crashes = 0
	}
	return q.Queue(`
		UPDATE saga_instances s
		SET rev = s.rev + 1, state = t.state, step = t.step, step_name = t.name, attempt = t.attempt,
			failure_kind = t.kind, failure_step = t.failed, failure_reason = t.reason, stuck_for = t.stuck,
			error = t.error, forward_only = t.forward, started_at = t.started, deadline_at = t.deadline, crashes = 0,
			updated_at = CASE WHEN (s.state, s.step) = (t.state, t.step) THEN s.updated_at ELSE clock_timestamp() END,
			ended_at = CASE WHEN t.ended THEN coalesce(s.ended_at, clock_timestamp()) END,
			finished_at = CASE WHEN t.state IN ('completed', 'compensated') THEN clock_timestamp() END
		FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::int[], $6::int[], $7::text[], $8::text[],
				$9::text[], $10::text[], $11::text[], $12::bool[], $13::bool[], $14::timestamptz[], $15::timestamptz[])
			AS t(id, rev, state, name, step, attempt, kind, failed, reason, stuck, error, forward, ended, started, deadline)
		WHERE s.id = t.id AND s.rev = t.rev`,
		ids, revs, states, names, steps, attempts, kinds, failed, reasons, stucks, errs, forward, ended, started, deadlines)
}

// flushLanes ends or lengthens leases. A unit that goes on inside this engine leaves its lane's row alone.
func (b *batch) flushLanes(q *pgx.Batch) (int, *pgx.QueuedQuery) {
	var (
		claims     []claim
		keep, done []bool
		runAt      []*time.Time
	)
	for _, u := range b.units {
		at, kept, written := b.laneAt(u)
		if !written {
			continue
		}
		claims = append(claims, u.t.claim)
		keep, done, runAt = append(keep, kept), append(done, u.act == actFinish), append(runAt, orNull(at))
	}
	if len(claims) == 0 {
		return 0, nil
	}
	lanes, tokens, revs := columns(claims)
	return len(claims), q.Queue(`
		UPDATE saga_lanes l
		SET token = CASE WHEN t.keep THEN l.token END,
			pending = l.pending - t.done::int,
			run_at = CASE WHEN NOT t.done THEN t.run_at WHEN l.pending > 1 THEN clock_timestamp() END
		FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bool[], $5::bool[], $6::timestamptz[])
			AS t(lane, token, rev, keep, done, run_at)
		WHERE l.lane = t.lane AND l.token = t.token AND l.rev = t.rev`,
		lanes, tokens, revs, keep, done, runAt)
}

// laneAt says when the unit's lane is due again; zero is never, until somebody acts.
func (b *batch) laneAt(u *unit) (at time.Time, keep, written bool) {
	if u.again {
		return at, false, false
	}
	s := u.s
	if u.act.remote() {
		return b.now.Add(max(b.opts.Lease, 2*s.spec().timeout)), true, true
	}
	if u.act == actWait {
		return b.wakeAt(s), false, true
	}
	return at, false, true // parked, or finished
}

func (b *batch) wakeAt(s *state) time.Time {
	pause := s.pause
	if s.in.State == InDoubt {
		pause = b.opts.InDoubtEvery
	}
	if s.in.State == StuckState {
		pause = noCodeEvery
	}
	at := b.now.Add(pause)
	forward := s.in.State == Running || s.in.State == InDoubt
	if d := s.in.DeadlineAt; forward && !s.in.ForwardOnly && d.After(b.now) && d.Before(at) {
		return d
	}
	return at
}

// dispatch does what the commit made true.
func (b *batch) dispatch(ctx context.Context) {
	for _, u := range b.units {
		t := u.t
		t.s, t.ev, t.tries = u.s, nil, 0
		if t.suspect && !t.s.suspected() {
			t.suspect = false
			b.queue.acquit(t)
		}
		if u.again {
			if u.act.remote() {
				b.queue.waitSlot(t)
			} else {
				b.queue.push(t)
			}
			continue
		}
		if u.act.remote() {
			b.startCall(ctx, t, u.act, u.from)
			continue
		}
		b.queue.drop(t)
		b.report(ctx, u)
		if u.act == actFinish {
			b.Kick() // the next instance of the lane
		}
	}
	if len(b.locked) > 0 {
		locked := b.locked
		b.queue.after(jitter(5*time.Millisecond), func() {
			for _, t := range b.queue.push(locked...) {
				b.lost(ctx, t)
			}
		})
	}
	for _, t := range b.fenced {
		b.lost(ctx, t)
	}
}

// report tells people what they may have to know.
func (b *batch) report(ctx context.Context, u *unit) {
	s := u.s
	log := b.log.With("saga_id", s.in.ID, "definition", s.in.Definition, "step", s.in.Step, "attempt", s.in.Attempt)
	switch {
	case u.act == actFinish:
		b.metrics.finished(ctx, s)
		log.DebugContext(ctx, "saga finished", "state", s.in.State, "reason", s.in.Failure.Reason)
	case s.in.State == StuckState:
		log.ErrorContext(ctx, "saga is stuck", "reason", s.stuckFor, "error", s.in.Error)
	case s.in.State == InDoubt:
		log.ErrorContext(ctx, "saga is in doubt", "error", s.in.Error)
	default:
		log.WarnContext(ctx, "step failed, will retry", "error", s.in.Error)
	}
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
