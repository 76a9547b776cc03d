package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

type storedReply struct {
	Found  found           `json:"found"`
	Result json.RawMessage `json:"result,omitempty"`
	Reason string          `json:"reason,omitempty"`
	Person bool            `json:"person,omitempty"`
}

// storeAnswer leaves an answer for the engine, at a step whose outcome is unknown. A success that waits there stays: what has
// happened is not undone by whoever did not see it.
func (s *subject) storeAnswer(ctx context.Context, tx pgx.Tx, step int, a Answer, person bool) (bool, error) {
	if a.err != nil {
		return false, a.err
	}
	raw, err := encode(storedReply{a.found, a.result, a.reason, person})
	if err != nil {
		return false, err
	}
	tag, err := tx.Exec(ctx, `
		UPDATE saga_journal SET answer = $3
		WHERE saga_id = $1 AND step = $2 AND NOT undo AND state IN ('intent', 'unknown')
			AND answer ->> 'found' IS DISTINCT FROM $4`, s.id, step, raw, foundSucceeded)
	if err != nil {
		return false, fmt.Errorf("store an answer for saga %s: %w", s.id, err)
	}
	return tag.RowsAffected() == 1, nil
}

// storedAnswer is the event that a stored answer becomes.
func storedAnswer(step int, e entry) *event {
	var reply storedReply
	if err := json.Unmarshal(e.answer, &reply); err != nil {
		return nil
	}
	return &event{
		step: step, attempt: e.attempt, asked: true, person: reply.Person, saved: e.saved,
		answer: Answer{found: reply.Found, result: reply.Result, reason: reply.Reason},
	}
}

// Settle tells a saga, when tx commits, what became of a call: a webhook, or any answer that comes by another way than
// the call itself. It may come early, twice, or late, and a success stays when another answer comes after it. A success
// that comes after compensation began is undone, once; a saga that had ended is opened again for it, and OnFailed is not
// run a second time. An answer of [NotYet], and one to a step that is settled already, change nothing.
func Settle(ctx context.Context, tx pgx.Tx, id uuid.UUID, step string, answer Answer) error {
	s, err := lockInstance(ctx, tx, id)
	if err != nil {
		return err
	}
	var (
		n     int
		entry EntryState
	)
	err = tx.QueryRow(ctx, `
		SELECT step, state FROM saga_journal WHERE saga_id = $1 AND name = $2 AND NOT undo AND key IS NOT NULL`,
		id, step).Scan(&n, &entry)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("settle %q of saga %s: no call was made: %w", step, id, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("settle %q of saga %s: %w", step, id, err)
	}
	success := answer.found == foundSucceeded
	switch {
	case entry == EntrySucceeded || entry == EntrySkipped && !s.failed || answer.found == foundNotYet || answer.found == "":
		return nil
	case !s.failed && s.state != Completed:
		return s.settleForward(ctx, tx, n, entry, answer)
	case s.failed && success:
		return s.undoLate(ctx, tx, n, step, answer)
	}
	return nil // it is being undone, and what did not happen needs no undoing
}

func (s *subject) settleForward(ctx context.Context, tx pgx.Tx, step int, entry EntryState, answer Answer) error {
	if entry == EntryAbsent {
		if answer.found != foundSucceeded {
			return nil
		}
		// It was said never to have existed, and now it has succeeded: the engine must not send it again.
		if _, err := tx.Exec(ctx, `
			UPDATE saga_journal SET state = 'unknown' WHERE saga_id = $1 AND step = $2 AND NOT undo`, s.id, step); err != nil {
			return fmt.Errorf("settle saga %s: %w", s.id, err)
		}
		if _, err := s.storeAnswer(ctx, tx, step, answer, false); err != nil {
			return err
		}
		return s.takeOver(ctx, tx, 0)
	}
	if _, err := s.storeAnswer(ctx, tx, step, answer, false); err != nil {
		return err
	}
	return s.wake(ctx, tx)
}

// undoLate puts a step on the list of what is to be undone although it had been undone, or held for not done. The
// compensation runs under the key that it had, so the other side refunds once.
func (s *subject) undoLate(ctx context.Context, tx pgx.Tx, step int, name string, answer Answer) error {
	if answer.err != nil {
		return answer.err
	}
	if err := s.audit(ctx, tx, "late", Operator{By: "saga", Reason: "late success of " + name}); err != nil {
		return err
	}
	var b pgx.Batch
	b.Queue(`
		UPDATE saga_journal SET state = 'succeeded', result = $3, outcome_at = clock_timestamp(), answer = NULL
		WHERE saga_id = $1 AND step = $2 AND NOT undo`, s.id, step, answer.result)
	b.Queue(`
		UPDATE saga_journal SET state = 'unknown', outcome_at = NULL, key_since = NULL
		WHERE saga_id = $1 AND step = $2 AND undo AND state = 'succeeded'`, s.id, step)
	// A stuck compensation stays stuck: it is at a step that a person has to look at, and comes here afterwards.
	b.Queue(`
		UPDATE saga_instances
		SET step = greatest(step, $2), step_name = CASE WHEN $2 > step THEN $3 ELSE step_name END,
			state = CASE WHEN state = 'stuck' THEN state ELSE 'compensating' END,
			finished_at = NULL, rev = rev + 1, updated_at = clock_timestamp()
		WHERE id = $1`, s.id, step, name)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("settle %q of saga %s: %w", name, s.id, err)
	}
	added := 0
	if s.state.Final() {
		added = 1
	}
	return s.takeOver(ctx, tx, added)
}
