package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ReplayOptions say what to publish again.
type ReplayOptions struct {
	// Relay is the name of the relay that publishes. Default "relay".
	Relay string
	// Since is the oldest message to publish again, by the time it was written. Required.
	Since time.Time
	// Until is the time before which the messages were written. Default: no end.
	Until time.Time
	// Topic and Key narrow the messages down. Default: all.
	Topic, Key string
	// By is who asks, for the audit. Default: the database's user.
	By string
}

func (o ReplayOptions) withDefaults() (ReplayOptions, error) {
	if o.Since.IsZero() {
		return o, errors.New("since is required")
	}
	if !o.Until.IsZero() && !o.Until.After(o.Since) {
		return o, fmt.Errorf("until %v is not after since %v", o.Until, o.Since)
	}
	o.Relay = cmp.Or(o.Relay, RelayOptions{}.withDefaults().Name)
	return o, nil
}

// order is o as a row of outbox_replays has it.
func (o ReplayOptions) order() replayOrder {
	order := replayOrder{Since: o.Since}
	if !o.Until.IsZero() {
		order.Until = &o.Until
	}
	if o.Topic != "" {
		order.Topic = &o.Topic
	}
	if o.Key != "" {
		order.Key = &o.Key
	}
	return order
}

// Replay orders the leader to publish again what it has published and the ring still holds, with the same ids and in
// the same order, before anything new. Consumers drop what they have. Messages that are parked or were discarded were
// never published, and are left out. Use it when a topic has lost its end. It returns the order's number for
// [ReplayDone], or [ErrUnknownRelay].
func Replay(ctx context.Context, pool *pgxpool.Pool, schema string, opts ReplayOptions) (int64, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return 0, fmt.Errorf("replay: %w", err)
	}
	o := opts.order()
	var number int64
	err = pool.QueryRow(ctx, `
		WITH ordered AS (
			INSERT INTO `+qualified(schema, "outbox_replays")+` (relay, topic, key, since, until)
			VALUES ($1, $2, $3, $4, $5)
			RETURNING id
		), audited AS (
			INSERT INTO `+qualified(schema, "outbox_audit")+` (action, by, relay, topic, key)
			VALUES ('replay', coalesce(nullif($6::text, ''), session_user), $1, $2, $3)
		)
		SELECT id FROM ordered`, opts.Relay, o.Topic, o.Key, o.Since, o.Until, opts.By).Scan(&number)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "23503" { // foreign_key_violation
		err = ErrUnknownRelay
	}
	if err != nil {
		return 0, fmt.Errorf("order replay by relay %q: %w", opts.Relay, err)
	}
	return number, nil
}

// ReplayPlan is what a replay would do.
type ReplayPlan struct {
	// Messages is how many would be published again.
	Messages int64
	// RingSince is when the oldest message was written that the ring still holds; zero if it is empty.
	RingSince time.Time
	// Left says that messages which were asked for may have left the ring: it begins after ReplayOptions.Since, and is
	// not all that was ever written.
	Left bool
}

// PlanReplay says what [Replay] would do. It reads the whole ring once. It returns [ErrUnknownRelay] for a name that no
// relay has.
func PlanReplay(ctx context.Context, pool *pgxpool.Pool, schema string, opts ReplayOptions) (ReplayPlan, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return ReplayPlan{}, fmt.Errorf("plan replay: %w", err)
	}
	state, err := inspectRelay(ctx, pool, schema, opts.Relay)
	if err != nil {
		return ReplayPlan{}, fmt.Errorf("plan replay by relay %q: %w", opts.Relay, err)
	}
	var (
		plan  ReplayPlan
		since *time.Time
		first *int64
	)
	what := replayed(schema, opts.Relay, opts.order(), state.cursor.prev, 0)
	err = pool.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE `+what.where+`), min(created_at), min(seq)
		FROM `+qualified(schema, "outbox"), what.args...).Scan(&plan.Messages, &since, &first)
	if err != nil {
		return ReplayPlan{}, fmt.Errorf("plan replay: %w", err)
	}
	if since == nil {
		plan.Left = state.cursor.hiSeq > 0
		return plan, nil
	}
	plan.RingSince = *since
	plan.Left = *first > 1 && since.After(opts.Since)
	return plan, nil
}

// replayed selects what an order asks for: what is published at prev, behind seq after. What was put aside was not.
func replayed(schema, relay string, o replayOrder, prev string, after int64) listed {
	return listed{
		where: `created_at >= $1::timestamptz AND ($2::timestamptz IS NULL OR created_at < $2)
				AND ($3::text IS NULL OR topic = $3) AND ($4::text IS NULL OR key = $4)
				AND pg_visible_in_snapshot(txid, $5::text::pg_snapshot) AND seq > $6
				AND seq NOT IN (SELECT p.seq FROM ` + qualified(schema, "outbox_parked") + ` p WHERE p.relay = $7)`,
		args: []any{o.Since, o.Until, o.Topic, o.Key, prev, after, relay},
	}
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
	Until      *time.Time
}

// replays works the open replays. One that is interrupted starts again: duplicates, never gaps.
func (t *term) replays(ctx context.Context) error {
	rows, _ := t.r.pool.Query(ctx, `
		SELECT id, topic, key, since, until
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
		all, err := t.r.list(ctx, replayed(t.r.opts.Schema, t.r.opts.Name, order, t.at.prev, after))
		if err != nil {
			return err
		}
		complete := all.count() < t.r.listMax
		if err := t.pages(ctx, all, func(ctx context.Context, page []Record, aside []parkedRow) error {
			count += int64(len(page))
			after = page[len(page)-1].Seq
			return t.saveReplay(ctx, order.ID, count, aside, false)
		}); err != nil {
			return err
		}
		if complete {
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
