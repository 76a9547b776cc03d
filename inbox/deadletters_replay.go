package inbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Replay hands the dead messages that f selects back to their consumers, which try them again in the order of their
// key. It returns how many. A message that fails again is dead again, its attempts counted on. by says who asked.
func Replay(ctx context.Context, pool *pgxpool.Pool, f Filter, by string) (int, error) {
	f.State, f.Limit = StateDead, 500
	replayed := 0
	for {
		page, err := ListParked(ctx, pool, f)
		if err != nil {
			return replayed, err
		}
		for _, p := range page {
			ok, err := replayOne(ctx, pool, p, by)
			if err != nil {
				return replayed, fmt.Errorf("replay parked message %d: %w", p.ID, err)
			}
			if ok {
				replayed++
			}
			f.AfterID = p.ID
		}
		if len(page) < f.Limit {
			return replayed, nil
		}
	}
}

// replayOne takes the locks in the drainer's order: the hold first, then its messages.
func replayOne(ctx context.Context, pool *pgxpool.Pool, p Parked, by string) (replayed bool, err error) {
	st := store{group: p.Group}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// A message whose key was released gets a hold again; the fenced drainer works it like any other.
		_, err := tx.Exec(ctx, `
			INSERT INTO inbox_holds (consumer_group, topic, key, state, parked, type, next_at)
			VALUES ($1, $2, $3, 'held', 0, $4, now())
			ON CONFLICT (consumer_group, topic, key) DO UPDATE SET lease_token = NULL`, p.Group, p.Topic, p.Key, p.Type)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			WITH replayed AS (
				UPDATE parked_messages p SET state = 'held', hold_key = p.key
				FROM parked_messages old
				WHERE p.id = $4 AND p.state = 'dead' AND old.id = p.id
				RETURNING old.hold_key
			)
			UPDATE inbox_holds h
			SET parked = h.parked + CASE WHEN r.hold_key IS NULL THEN 1 ELSE 0 END,
			    state = 'held', tries = 0, next_at = now(), leased_until = NULL
			FROM replayed r
			WHERE h.consumer_group = $1 AND h.topic = $2 AND h.key = $3`, p.Group, p.Topic, p.Key, p.ID)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 { // settled by somebody else since it was listed
			return st.advance(ctx, tx, p.Topic, p.Key, 0)
		}
		replayed = true
		return st.audit(ctx, tx, auditRow{action: "replay", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: p.ID, by: by})
	})
	return replayed, err
}
