package inbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrChanged is returned by [EditParked] and [DiscardParked] when the message is not what it was when it was shown; by
// [EditParked] also for one that waits behind another.
var ErrChanged = errors.New("the message is another than the one shown, or waits")

// Edit is one replacement of a parked message's payload.
type Edit struct {
	At         time.Time
	By, Reason string
	Payload    []byte // what it replaced; nil when there was none
}

// Original returns the payload that the message's record had, whatever edits came after.
func (p Parked) Original() []byte {
	if len(p.Edits) > 0 {
		return p.Edits[0].Payload
	}
	return p.Payload
}

// EditParked replaces the payload of a dead or held message, p as [ShowParked] returned it. Its id, key and headers
// stay, and processed_messages goes on knowing it by its original payload: the record delivered again is a duplicate,
// not a conflict. A drainer at work on it loses its lease and rolls back. A dead message stays dead until [Replay]; a
// held one is tried again at once, and has all of [Options.MaxTries] again. What was replaced is kept in inbox_edits; reason and by go into inbox_audit.
//
// It returns [ErrNotFound] when the message is not parked any more, [ErrChanged] when somebody was faster, and another
// error for a payload that no handler could read.
func EditParked(ctx context.Context, pool *pgxpool.Pool, p Parked, payload []byte, reason, by string) error {
	if reason == "" {
		return errors.New("editing a message needs a reason")
	}
	if err := checkPayload(Message{Headers: p.Headers}.Header("content-type"), payload); err != nil {
		return fmt.Errorf("edit parked message %d: %w", p.ID, err)
	}
	st := store{group: p.Group}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := st.seize(ctx, tx, p.Topic, p.Key); err != nil {
			return err
		}
		var state string
		var now []byte
		err := tx.QueryRow(ctx, `SELECT state, payload FROM parked_messages WHERE id = $1 FOR UPDATE`, p.ID).Scan(&state, &now)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		if state == StateWaiting || state != p.State || !sameBytes(now, p.Payload) {
			return ErrChanged
		}
		if _, err := tx.Exec(ctx, `UPDATE parked_messages SET payload = $2, counted = 0 WHERE id = $1`, p.ID, payload); err != nil {
			return err
		}
		if state == StateHeld {
			if _, err := tx.Exec(ctx, `
				UPDATE inbox_holds SET next_at = now()
				WHERE consumer_group = $1 AND topic = $2 AND key = $3 AND state = 'held'`, p.Group, p.Topic, p.Key); err != nil {
				return err
			}
		}
		return st.noteEdit(ctx, tx, p, Edit{By: by, Reason: reason, Payload: now})
	})
	if err != nil {
		return fmt.Errorf("edit parked message %d: %w", p.ID, err)
	}
	return nil
}

// seize takes a key's lease away: a drainer that is at work on the key rolls back. It locks the hold, if there is one.
func (s store) seize(ctx context.Context, tx pgx.Tx, topic, key string) error {
	_, err := tx.Exec(ctx, `
		UPDATE inbox_holds SET lease_token = NULL, leased_until = NULL
		WHERE consumer_group = $1 AND topic = $2 AND key = $3`, s.group, topic, key)
	if err != nil {
		return fmt.Errorf("take the lease of a held key: %w", err)
	}
	return nil
}

// noteEdit writes an edit of p into the audit, with the payload it replaced. Without a time it was made now.
func (s store) noteEdit(ctx context.Context, tx pgx.Tx, p Parked, e Edit) error {
	_, err := tx.Exec(ctx, `
		WITH noted AS (
			INSERT INTO inbox_audit (at, action, consumer_group, topic, key, event_id, parked_id, reason, by)
			VALUES (coalesce($1, clock_timestamp()), 'edit', $2, $3, $4, $5::text::uuid, $6, $7, $8)
			RETURNING id, consumer_group, event_id
		)
		INSERT INTO inbox_edits (audit_id, consumer_group, event_id, payload)
		SELECT id, consumer_group, event_id, $9 FROM noted`,
		orNil(e.At), s.group, p.Topic, p.Key, p.EventID.String(), p.ID, text(e.Reason), text(e.By), e.Payload)
	if err != nil {
		return fmt.Errorf("note an edit: %w", err)
	}
	return nil
}

// edits returns the edits of a message, the first one first.
func edits(ctx context.Context, pool *pgxpool.Pool, group string, id uuid.UUID) ([]Edit, error) {
	rows, _ := pool.Query(ctx, `
		SELECT a.at, a.by, a.reason, e.payload
		FROM inbox_edits e
		JOIN inbox_audit a ON a.id = e.audit_id
		WHERE e.consumer_group = $1 AND e.event_id = $2::text::uuid
		ORDER BY e.audit_id`, group, id.String()) // CollectRows reports the error
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Edit])
	if err != nil {
		return nil, fmt.Errorf("load the edits of message %s: %w", id, err)
	}
	return found, nil
}

// sameBytes tells no payload from an empty one.
func sameBytes(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }
