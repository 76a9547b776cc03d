package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ReplayOptions say what to publish again.
type ReplayOptions struct {
	// Relay is the name of the relay that publishes. Default "relay".
	Relay string
	// Since is the oldest message to publish again, by the time it was written. Required.
	Since time.Time
	// Topic and Key narrow the messages down. Default: all.
	Topic, Key string
}

// Replay orders the leader to publish again what it has published and the ring still holds, with the same ids and in
// the same order, before anything new. Messages that were discarded stay so. Consumers drop what they have. Use it when
// a topic has lost its end. It returns the order's number for [ReplayDone].
func Replay(ctx context.Context, pool *pgxpool.Pool, schema string, opts ReplayOptions) (int64, error) {
	if opts.Since.IsZero() {
		return 0, errors.New("replay: since is required")
	}
	if opts.Relay == "" {
		opts.Relay = RelayOptions{}.withDefaults().Name
	}
	var number int64
	err := pool.QueryRow(ctx, `
		INSERT INTO `+qualified(schema, "outbox_replays")+` (relay, topic, key, since)
		VALUES ($1, nullif($2::text, ''), nullif($3::text, ''), $4::timestamptz)
		RETURNING id`, opts.Relay, opts.Topic, opts.Key, opts.Since).Scan(&number)
	if err != nil {
		return 0, fmt.Errorf("order replay: %w", err)
	}
	return number, nil
}

// ReplayDone reports whether a replay is finished, and how many messages it has published so far.
func ReplayDone(
	ctx context.Context, pool *pgxpool.Pool, schema string, number int64,
) (messages int64, done bool, err error) {
	err = pool.QueryRow(ctx, `
		SELECT messages, done_at IS NOT NULL
		FROM `+qualified(schema, "outbox_replays")+`
		WHERE id = $1`, number).Scan(&messages, &done)
	if err != nil {
		return 0, false, fmt.Errorf("look at replay %d: %w", number, err)
	}
	return messages, done, nil
}

// replayOrder is an open row of outbox_replays.
type replayOrder struct {
	ID         int64
	Topic, Key *string
	Since      time.Time
}

// replays works the open replays. One that is interrupted starts again: duplicates, never gaps.
func (t *term) replays(ctx context.Context) error {
	rows, _ := t.r.pool.Query(ctx, `
		SELECT id, topic, key, since
		FROM `+t.r.table("outbox_replays")+`
		WHERE relay = $1 AND done_at IS NULL
		ORDER BY id`, t.r.opts.Name) // CollectRows reports the error
	orders, err := pgx.CollectRows(rows, pgx.RowToStructByPos[replayOrder])
	if err != nil {
		return fmt.Errorf("look for replays: %w", err)
	}
	for _, order := range orders {
		if err := t.replay(ctx, order); err != nil {
			return err
		}
	}
	return nil
}

func (t *term) replay(ctx context.Context, order replayOrder) error {
	t.replaying = true
	defer func() { t.replaying = false }()
	var count, after int64
	for {
		places, err := t.r.list(ctx, listed{
			where: `created_at >= $1::timestamptz AND ($2::text IS NULL OR topic = $2) AND ($3::text IS NULL OR key = $3)
				AND pg_visible_in_snapshot(txid, $4::text::pg_snapshot) AND seq > $5
				AND NOT EXISTS (
					SELECT FROM ` + t.r.table("outbox_parked") + ` p
					WHERE p.relay = $6 AND p.seq = outbox.seq AND p.state = 'discarded'
				)`,
			args: []any{order.Since, order.Topic, order.Key, t.at.prev, after, t.r.opts.Name},
		})
		if err != nil {
			return err
		}
		if err := t.pages(ctx, places, func(ctx context.Context, page []Record, aside []parkedRow) error {
			count += int64(len(page))
			after = page[len(page)-1].Seq
			return t.saveReplay(ctx, order.ID, count, aside, false)
		}); err != nil {
			return err
		}
		if len(places) < t.r.listMax {
			break
		}
	}
	t.r.log.InfoContext(ctx, "replay done", "messages", count)
	return t.saveReplay(ctx, order.ID, count, nil, true)
}

func (t *term) saveReplay(ctx context.Context, id, count int64, aside []parkedRow, done bool) error {
	return t.fenced(ctx, func(tx pgx.Tx) error {
		if err := t.r.insertParked(ctx, tx, aside); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			UPDATE `+t.r.table("outbox_replays")+`
			SET messages = $2, done_at = CASE WHEN $3::boolean THEN clock_timestamp() END
			WHERE id = $1`, id, count, done)
		if err != nil {
			return fmt.Errorf("save replay: %w", err)
		}
		return nil
	})
}
