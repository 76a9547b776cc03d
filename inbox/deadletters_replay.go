package inbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Forecast says what a replay of dead messages would do.
type Forecast struct {
	Run    int // messages that their consumers will try again
	Drop   int // messages that processed_messages knows as done or discarded: dropped, not run
	Behind int // other messages that wait in the same keys and go on when these succeed
}

// ForecastReplay says what [Replay] would do now with the dead messages of group that have these ids.
func ForecastReplay(ctx context.Context, pool *pgxpool.Pool, group string, ids []int64) (Forecast, error) {
	var f Forecast
	err := pool.QueryRow(ctx, `
		WITH chosen AS (
			SELECT id, topic, key, hold_key, event_id
			FROM parked_messages
			WHERE consumer_group = $1 AND state = 'dead' AND id = ANY($2::bigint[])
		), settled AS (
			SELECT c.id
			FROM chosen c
			JOIN processed_messages m ON m.consumer_group = $1 AND m.event_id = c.event_id
			WHERE m.state IN ('done', 'discarded')
		)
		SELECT (SELECT count(*) FROM chosen) - (SELECT count(*) FROM settled),
		       (SELECT count(*) FROM settled),
		       (SELECT count(*)
		        FROM parked_messages p
		        WHERE p.consumer_group = $1 AND p.state = 'waiting'
		          AND (p.topic, p.hold_key) IN (SELECT topic, key FROM chosen))`, group, notNil(ids)).Scan(&f.Run, &f.Drop, &f.Behind)
	if err != nil {
		return Forecast{}, fmt.Errorf("forecast a replay: %w", err)
	}
	return f, nil
}

// Replay hands the dead messages that f selects back to their consumers, which try them again in the order of their
// key, in their own group alone. It returns how many. Each has all of [Options.MaxTries] again: one that fails permanently is dead
// again, one that fails otherwise is held like any other. Attempts are counted on. One that processed_messages knows as done or discarded, as after a restore, is dropped instead and not counted.
// by says who asked.
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
		settled, err := st.dropSettled(ctx, tx, p, by)
		if err != nil || settled {
			return err
		}
		tag, err := tx.Exec(ctx, `
			WITH replayed AS (
				UPDATE parked_messages p SET state = 'held', hold_key = p.key, counted = 0
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

// dropSettled removes a dead message that has its fate already: running it would repeat an effect. The caller holds the
// hold's lock.
func (s store) dropSettled(ctx context.Context, tx pgx.Tx, p Parked, by string) (dropped bool, err error) {
	tag, err := tx.Exec(ctx, `
		DELETE FROM parked_messages p
		WHERE p.id = $1 AND p.state = 'dead' AND EXISTS (
		    SELECT FROM processed_messages m
		    WHERE (m.consumer_group, m.event_id, m.slot) = (p.consumer_group, p.event_id, $2) AND m.state IN ('done', 'discarded'))`,
		p.ID, slotOf(p.EventID))
	if err != nil || tag.RowsAffected() == 0 {
		return false, err
	}
	removed := 1
	if p.Released {
		removed = 0 // its hold, made by this replay, never counted it
	}
	if err := s.advance(ctx, tx, p.Topic, p.Key, removed); err != nil {
		return false, err
	}
	return true, s.audit(ctx, tx, auditRow{
		action: "discard", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: p.ID, reason: "replayed, and had its fate already", by: by,
	})
}
