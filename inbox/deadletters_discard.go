package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DiscardParked gives a parked message up for good: it is never handled, and the next message of its key is tried. It
// returns [ErrNotFound] when the message is not parked, or not any more. Reason and by go into inbox_audit.
func DiscardParked(ctx context.Context, pool *pgxpool.Pool, id int64, reason, by string) error {
	if reason == "" {
		return errors.New("discarding a message needs a reason")
	}
	p, err := onlyParked(ctx, pool, id)
	if err != nil {
		return err
	}
	st := store{group: p.Group}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := st.seize(ctx, tx, p.Topic, p.Key); err != nil {
			return err
		}
		var held bool
		err := tx.QueryRow(ctx, `DELETE FROM parked_messages WHERE id = $1 RETURNING hold_key IS NOT NULL`, id).Scan(&held)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
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
		return st.audit(ctx, tx, auditRow{action: "discard", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: id, reason: reason, by: by})
	})
	if err != nil {
		return fmt.Errorf("discard parked message %d: %w", id, err)
	}
	return nil
}
