package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Operator is who intervenes, why, and on which revision of the instance. All three are required: the intervention is
// audited, and refused with [ErrConflict] if the instance has moved since it was looked at, or somebody else has intervened.
type Operator struct {
	By     string
	Reason string
	Rev    int64 // [Instance.Rev]
}

// subject is an instance under its lane's lock.
type subject struct {
	id      uuid.UUID
	lane    string
	claimed bool
	state   State
	step    int
	failed  bool // compensation has begun
	forward bool
	rev     int64
}

// lockInstance locks the lane and reads the instance, in that order, as the engine does.
func lockInstance(ctx context.Context, tx pgx.Tx, id uuid.UUID) (*subject, error) {
	s := &subject{id: id}
	err := tx.QueryRow(ctx, `
		SELECT lane, token IS NOT NULL FROM saga_lanes
		WHERE lane = (SELECT lane FROM saga_instances WHERE id = $1)
		FOR UPDATE`, id).Scan(&s.lane, &s.claimed)
	if err == nil {
		err = tx.QueryRow(ctx, `
			SELECT state, step, failure_kind IS NOT NULL, forward_only, rev FROM saga_instances WHERE id = $1`,
			id).Scan(&s.state, &s.step, &s.failed, &s.forward, &s.rev)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("saga %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("lock saga %s: %w", id, err)
	}
	return s, nil
}

// intervene locks, checks the revision and writes the audit row.
func intervene(ctx context.Context, tx pgx.Tx, id uuid.UUID, action string, op Operator) (*subject, error) {
	if op.By == "" || op.Reason == "" {
		return nil, fmt.Errorf("%s saga %s: who does it and why are required", action, id)
	}
	s, err := lockInstance(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if s.rev != op.Rev {
		return nil, fmt.Errorf("%s saga %s: revision %d is now %d: %w", action, id, op.Rev, s.rev, ErrConflict)
	}
	// Used up, also by a command that leaves the rest of the row alone: of two people who looked at it, one is obeyed.
	if _, err := tx.Exec(ctx, `UPDATE saga_instances SET rev = rev + 1 WHERE id = $1`, id); err != nil {
		return nil, fmt.Errorf("%s saga %s: %w", action, id, err)
	}
	return s, s.audit(ctx, tx, action, op)
}

func (s *subject) audit(ctx context.Context, tx pgx.Tx, action string, op Operator) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO saga_audit (saga_id, action, actor, reason, was, rev) VALUES ($1, $2, $3, $4, $5, $6)`,
		s.id, action, op.By, op.Reason, s.state, s.rev)
	if err != nil {
		return fmt.Errorf("audit saga %s: %w", s.id, err)
	}
	return nil
}

func (s *subject) conflict(action, why string) error {
	return fmt.Errorf("%s saga %s, which is %s: %s: %w", action, s.id, s.state, why, ErrConflict)
}

// takeOver takes the lane from whichever engine holds it, and makes it due. added is 1 where a finished instance lives
// again.
func (s *subject) takeOver(ctx context.Context, tx pgx.Tx, added int) error {
	_, err := tx.Exec(ctx, `
		UPDATE saga_lanes SET token = NULL, rev = rev + 1, pending = pending + $2, run_at = clock_timestamp()
		WHERE lane = $1`, s.lane, added)
	if err != nil {
		return fmt.Errorf("take over the lane of saga %s: %w", s.id, err)
	}
	return nil
}

// wake makes a lane due that no engine holds. An engine that holds it comes back to it by itself.
func (s *subject) wake(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `
		UPDATE saga_lanes SET run_at = CASE WHEN token IS NULL THEN clock_timestamp() ELSE run_at END WHERE lane = $1`,
		s.lane)
	if err != nil {
		return fmt.Errorf("wake the lane of saga %s: %w", s.id, err)
	}
	return nil
}

// Retry sends a stuck instance on from where it stands, with its attempts and the time of its compensation counted anew,
// and asks at once about one that is in doubt.
func Retry(ctx context.Context, tx pgx.Tx, id uuid.UUID, op Operator) error {
	s, err := intervene(ctx, tx, id, "retry", op)
	if err != nil {
		return err
	}
	if s.state != StuckState && s.state != InDoubt {
		return s.conflict("retry", "only a stuck or in-doubt saga can be retried")
	}
	_, err = tx.Exec(ctx, `
		UPDATE saga_instances
		SET state = CASE WHEN failure_kind IS NOT NULL THEN 'compensating' WHEN state = 'stuck' THEN 'running' ELSE state END,
			updated_at = CASE WHEN state = 'stuck' THEN clock_timestamp() ELSE updated_at END,
			stuck_for = NULL, error = NULL, attempt = 0, crashes = 0
		WHERE id = $1`, id)
	if err != nil {
		return fmt.Errorf("retry saga %s: %w", id, err)
	}
	if _, err := tx.Exec(ctx, `
		UPDATE saga_journal SET lost = 0, key_since = CASE WHEN NOT undo THEN key_since END WHERE saga_id = $1`, id); err != nil {
		return fmt.Errorf("retry saga %s: %w", id, err)
	}
	return s.takeOver(ctx, tx, 0)
}

// Resolution is what a person found out about a call whose outcome is unknown.
type Resolution struct {
	// Happened: the other side did it. Else the saga is compensated, or, after its pivot, the call is sent again. A step that has
	// saved progress is compensated as well, so that a call which is still on its way does nothing either.
	Happened bool
	// Result stands for what the call would have returned, as JSON. A step's Record and Undo read it.
	Result json.RawMessage
}

// Resolve settles the step that an instance stands at, on a person's word. The instance is in doubt, stuck, or still
// being asked about.
func Resolve(ctx context.Context, tx pgx.Tx, id uuid.UUID, res Resolution, op Operator) error {
	s, err := intervene(ctx, tx, id, "resolve", op)
	if err != nil {
		return err
	}
	if s.failed || s.state.Final() {
		return s.conflict("resolve", "it is going back or has ended; what happened late is told with Settle")
	}
	answer := FoundSucceeded(res.Result)
	if !res.Happened {
		answer = NeverExisted()
		answer.reason = op.Reason
	}
	found, err := s.storeAnswer(ctx, tx, s.step, answer, true)
	if err != nil {
		return err
	}
	if !found {
		return s.conflict("resolve", "no call of its step has an outcome that nobody knows")
	}
	return s.takeOver(ctx, tx, 0)
}

// Compensate turns an instance round that has not passed its pivot.
func Compensate(ctx context.Context, tx pgx.Tx, id uuid.UUID, op Operator) error {
	s, err := intervene(ctx, tx, id, "compensate", op)
	if err != nil {
		return err
	}
	switch {
	case s.failed || s.state.Final():
		return s.conflict("compensate", "it is going back or has ended")
	case s.forward:
		return s.conflict("compensate", "it is past its pivot, or its pivot was sent and its outcome is unknown")
	}
	tag, err := tx.Exec(ctx, `
		UPDATE saga_instances
		SET state = 'compensating', failure_kind = 'operator', failure_step = step_name, failure_reason = $2,
			stuck_for = NULL, error = NULL, attempt = 0, crashes = 0, updated_at = clock_timestamp(),
			started_at = coalesce(started_at, clock_timestamp())
		WHERE id = $1 AND NOT EXISTS (
			SELECT FROM saga_journal j
			WHERE j.saga_id = $1 AND j.step = saga_instances.step AND NOT j.undo AND j.state = 'skipped')`, id, clip(op.Reason))
	if err != nil {
		return fmt.Errorf("compensate saga %s: %w", id, err)
	}
	if tag.RowsAffected() == 0 { // it may be the pivot, which only the engine knows
		return s.conflict("compensate", "its step was passed over, and the engine has not gone on from there yet")
	}
	return s.takeOver(ctx, tx, 0)
}

// Skip passes over the step, or the compensation, that a stuck instance stands at, as if it had succeeded. If the instance is
// compensated later, the compensation of a remote step runs that had called before it was passed over, that of a local step not.
func Skip(ctx context.Context, tx pgx.Tx, id uuid.UUID, op Operator) error {
	s, err := intervene(ctx, tx, id, "skip", op)
	if err != nil {
		return err
	}
	if s.state != StuckState {
		return s.conflict("skip", "only a stuck saga can skip a step")
	}
	tag, err := tx.Exec(ctx, `
		INSERT INTO saga_journal (saga_id, step, undo, name, state, intent_at, outcome_at, error)
		SELECT id, step, failure_kind IS NOT NULL, step_name, 'skipped', clock_timestamp(), clock_timestamp(), $2
		FROM saga_instances WHERE id = $1 AND step_name <> ''
		ON CONFLICT (saga_id, step, undo) DO UPDATE
		SET state = 'skipped', outcome_at = excluded.outcome_at, error = excluded.error, answer = NULL`, id, clip(op.Reason))
	if err != nil {
		return fmt.Errorf("skip a step of saga %s: %w", id, err)
	}
	if tag.RowsAffected() == 0 {
		return s.conflict("skip", "it stands at no step")
	}
	_, err = tx.Exec(ctx, `
		UPDATE saga_instances
		SET state = CASE WHEN failure_kind IS NULL THEN 'running' ELSE 'compensating' END,
			stuck_for = NULL, error = NULL, attempt = 0, crashes = 0, updated_at = clock_timestamp()
		WHERE id = $1`, id)
	if err != nil {
		return fmt.Errorf("skip a step of saga %s: %w", id, err)
	}
	return s.takeOver(ctx, tx, 0)
}
