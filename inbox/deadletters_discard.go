package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DiscardParked gives p, as [ListParked] or [ShowParked] returned it, up for good: it is never handled, and the next message of
// its key is tried. Reason and by go into inbox_audit.
//
// It returns [ErrNotFound] when the message is not parked any more, and [ErrChanged] when its state is not p's: one that was
// dead, and that somebody has replayed since, is about to be handled.
func DiscardParked(ctx context.Context, pool *pgxpool.Pool, p Parked, reason, by string) error {
	if reason == "" {
		return errors.New("discarding a message needs a reason")
	}
	st := store{group: p.Group}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := st.seize(ctx, tx, p.Topic, p.Key); err != nil {
			return err
		}
		var state string
		var held bool
		err := tx.QueryRow(ctx, `DELETE FROM parked_messages WHERE id = $1 RETURNING state, hold_key IS NOT NULL`, p.ID).Scan(&state, &held)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		if state != p.State {
			return ErrChanged
		}
		if _, err = tx.Exec(ctx, `
			UPDATE processed_messages SET state = 'discarded'
			WHERE slot = $1 AND consumer_group = $2 AND event_id = $3`, slotOf(p.EventID), p.Group, p.EventID.String()); err != nil {
			return err
		}
		if held {
			if err := st.advance(ctx, tx, p.Topic, p.Key, 1); err != nil {
				return err
			}
		}
		return st.audit(ctx, tx, auditRow{action: "discard", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: p.ID, reason: reason, by: by})
	})
	if err != nil {
		return fmt.Errorf("discard parked message %d: %w", p.ID, err)
	}
	return nil
}
