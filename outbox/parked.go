package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrNotParked is returned for a key or a message that is not parked, or not any more.
var ErrNotParked = errors.New("not parked")

// Parked is a message put aside: one that the broker refused, or one behind it.
type Parked struct {
	Relay        string
	Seq          int64
	ID           uuid.UUID
	Topic, Key   string
	Type         string
	CreatedAt    time.Time
	ParkedAt     time.Time
	Error        string // why it was refused; empty for one that waits behind it
	Attempts     int
	Released     bool // the leader will publish its key shortly
	PayloadBytes int
}

// ListParked returns the messages that are parked, first by topic and key, then in their order.
func ListParked(ctx context.Context, pool *pgxpool.Pool, schema string) ([]Parked, error) {
	rows, _ := pool.Query(ctx, `
		SELECT relay, seq, id, topic, key, type, created_at, parked_at, error, attempts, state = 'released',
			octet_length(payload)
		FROM `+qualified(schema, "outbox_parked")+`
		WHERE state <> 'discarded'
		ORDER BY relay, topic, key, seq`) // CollectRows reports the error
	parked, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Parked])
	if err != nil {
		return nil, fmt.Errorf("list parked messages: %w", err)
	}
	return parked, nil
}

// ParkedKey is a key that is parked: the message that keeps it so, and how many wait.
type ParkedKey struct {
	Relay      string
	Topic, Key string
	// MessageID, Type, Error and Attempts are of the message that was refused: the first of the key that was, if several
	// were. Error is empty while the leader has not noticed yet that it was discarded.
	MessageID uuid.UUID
	Type      string
	Error     string
	Attempts  int
	ParkedAt  time.Time // since when the key is parked
	Messages  int64     // all that wait, the refused one included
	Released  bool      // the leader will publish them shortly
}

// ListParkedKeys returns the keys that are parked, by relay, topic and key.
func ListParkedKeys(ctx context.Context, pool *pgxpool.Pool, schema string) ([]ParkedKey, error) {
	rows, _ := pool.Query(ctx, `
		SELECT DISTINCT ON (relay, topic, key) relay, topic, key, id, type, error, attempts,
			min(parked_at) OVER one, count(*) OVER one, bool_or(state = 'released') OVER one
		FROM `+qualified(schema, "outbox_parked")+`
		WHERE state <> 'discarded'
		WINDOW one AS (PARTITION BY relay, topic, key)
		ORDER BY relay, topic, key, error = '', seq`) // CollectRows reports the error
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ParkedKey])
	if err != nil {
		return nil, fmt.Errorf("list parked keys: %w", err)
	}
	return keys, nil
}

// Release orders the leader to publish all parked messages of a topic's key, in their order, within about a second. If
// one is refused again, it and those behind it stay parked. by is who asks; it is kept. Release returns how many
// messages there are, or [ErrNotParked].
func Release(ctx context.Context, pool *pgxpool.Pool, schema, topic, key, by string) (int, error) {
	if by == "" {
		return 0, errors.New("release parked key: who asks is required")
	}
	n, err := settleParked(ctx, pool, schema, settlement{
		action: "release", set: `state = 'released'`, where: `topic = $3 AND key = $4`, by: by, args: []any{topic, key},
	})
	if err != nil {
		return 0, fmt.Errorf("release parked key: %w", err)
	}
	return n, nil
}

const discarding = `state = 'discarded', settled_by = $1, reason = $2, settled_at = clock_timestamp()`

// Discard gives a parked message up for good. Who did it and why are required and kept, with the message. Once no
// refused message of its key is left, the leader publishes those behind it, within about a second. Discard returns
// [ErrNotParked] for a message that is not parked.
func Discard(ctx context.Context, pool *pgxpool.Pool, schema string, id uuid.UUID, by, reason string) error {
	if by == "" || reason == "" {
		return errors.New("discard parked message: who and why are required")
	}
	if _, err := settleParked(ctx, pool, schema, settlement{
		action: "discard", set: discarding, where: `id = $3::text::uuid`, by: by, reason: reason, args: []any{id.String()},
	}); err != nil {
		return fmt.Errorf("discard parked message %s: %w", id, err)
	}
	return nil
}

// DiscardKey gives all parked messages of a topic's key up for good, as [Discard] does one. It returns how many there
// were, or [ErrNotParked]. Messages that queue up meanwhile are published.
func DiscardKey(ctx context.Context, pool *pgxpool.Pool, schema, topic, key, by, reason string) (int, error) {
	if by == "" || reason == "" {
		return 0, errors.New("discard parked key: who and why are required")
	}
	n, err := settleParked(ctx, pool, schema, settlement{
		action: "discard", set: discarding, where: `topic = $3 AND key = $4`, by: by, reason: reason, args: []any{topic, key},
	})
	if err != nil {
		return 0, fmt.Errorf("discard parked key: %w", err)
	}
	return n, nil
}

// settlement is what a person decides about parked messages: $1 is who, $2 why, args come behind them.
type settlement struct {
	action, set, where, by, reason string
	args                           []any
}

// settleParked changes the state of parked messages and writes down who did it, a line for each message. It returns how
// many there are, or [ErrNotParked].
func settleParked(ctx context.Context, pool *pgxpool.Pool, schema string, s settlement) (int, error) {
	tag, err := pool.Exec(ctx, `
		WITH settled AS (
			UPDATE `+qualified(schema, "outbox_parked")+`
			SET `+s.set+`
			WHERE state <> 'discarded' AND `+s.where+`
			RETURNING relay, topic, key, id
		)
		INSERT INTO `+qualified(schema, "outbox_audit")+` (action, by, reason, relay, topic, key, message_id, messages)
		SELECT '`+s.action+`', $1::text, $2::text, relay, topic, key, id, 1
		FROM settled`, append([]any{s.by, s.reason}, s.args...)...)
	if err != nil {
		return 0, err
	}
	if tag.RowsAffected() == 0 {
		return 0, ErrNotParked
	}
	return int(tag.RowsAffected()), nil
}

// parkedRow is a record on its way to the parked messages. refusal is nil for one that waits behind another.
type parkedRow struct {
	record  Record
	refusal error
}

// insertParked stores messages put aside. One that is there already was put aside by a leader that could not save its
// cursor, and stays as it is.
func (r *Relay) insertParked(ctx context.Context, tx pgx.Tx, aside []parkedRow) error {
	for i := range aside {
		record := &aside[i].record
		headers := map[string]string{}
		for _, h := range record.Headers {
			if !slices.Contains(fixedHeaders, h.Key) {
				headers[h.Key] = string(h.Value)
			}
		}
		encoded, err := json.Marshal(headers)
		if err != nil {
			return fmt.Errorf("park message %s: %w", record.ID, err)
		}
		refusal, attempts := "", 0
		if aside[i].refusal != nil {
			refusal, attempts = aside[i].refusal.Error(), 1
		}
		if _, err := tx.Exec(ctx, `
			INSERT INTO `+r.table("outbox_parked")+`
				(relay, seq, id, topic, key, type, content_type, headers, payload, created_at, error, attempts)
			VALUES ($1, $2, $3::text::uuid, $4, $5, $6, $7, $8::text::jsonb, $9, $10, $11, $12)
			ON CONFLICT DO NOTHING`,
			r.opts.Name, record.Seq, record.ID.String(), record.Topic, record.Key, record.header(headerType),
			record.header(headerContentType), string(encoded), record.Value, record.CreatedAt, refusal, attempts,
		); err != nil {
			return fmt.Errorf("park message %s: %w", record.ID, err)
		}
	}
	return nil
}

// loadParked reads which keys are parked, and returns those to publish: released ones, and those whose refused messages
// were all discarded, so that nothing keeps them.
func (t *term) loadParked(ctx context.Context) ([]lane, error) {
	rows, err := t.r.pool.Query(ctx, `
		SELECT topic, key, bool_or(state = 'released') OR NOT bool_or(error <> '')
		FROM `+t.r.table("outbox_parked")+`
		WHERE relay = $1 AND state <> 'discarded'
		GROUP BY topic, key`, t.r.opts.Name)
	if err != nil {
		return nil, fmt.Errorf("load parked keys: %w", err)
	}
	var (
		on         lane
		isReleased bool
		released   []lane
	)
	t.parked = map[lane]bool{}
	_, err = pgx.ForEachRow(rows, []any{&on.topic, &on.key, &isReleased}, func() error {
		t.parked[on] = true
		if isReleased {
			released = append(released, on)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load parked keys: %w", err)
	}
	return released, nil
}

// settle does what people have decided about parked messages. Only a leader parks, so without parked keys there is
// nothing to ask.
func (t *term) settle(ctx context.Context) error {
	if len(t.parked) == 0 {
		return nil
	}
	released, err := t.loadParked(ctx)
	if err != nil {
		return err
	}
	for _, on := range released {
		if err := t.redrive(ctx, on); err != nil {
			return err
		}
	}
	return nil
}

// redrive publishes the parked messages of a released key in order, until none is left or one is refused again.
func (t *term) redrive(ctx context.Context, on lane) error {
	const page = 20
	for {
		rows, err := t.r.pool.Query(ctx, `
			SELECT `+rowColumns+`
			FROM `+t.r.table("outbox_parked")+`
			WHERE relay = $1 AND topic = $2 AND key = $3 AND state <> 'discarded'
			ORDER BY seq
			LIMIT $4`, t.r.opts.Name, on.topic, on.key, page)
		if err != nil {
			return fmt.Errorf("read parked messages: %w", err)
		}
		records, err := t.r.appendRecords(nil, rows)
		if err != nil {
			return fmt.Errorf("read parked messages: %w", err)
		}
		if len(records) == 0 {
			delete(t.parked, on)
			t.r.log.InfoContext(ctx, "parked key released", "topic", on.topic)
			return nil
		}
		done, failure := t.sendParked(ctx, records)
		var refusal error
		if errors.Is(failure, ErrRefused) {
			refusal = failure
		}
		if err := t.saveRedrive(ctx, on, records[:done], refusal); err != nil {
			return fmt.Errorf("release parked key: %w", err)
		}
		if refusal != nil {
			t.r.log.ErrorContext(ctx, "released message refused again, its key stays parked",
				"topic", on.topic, "message_id", records[done].ID, "error", refusal)
			return nil
		}
		if failure != nil {
			t.r.log.WarnContext(ctx, "parked key not released yet", "topic", on.topic, "error", failure)
			return nil // the key stays released for the next time
		}
	}
}

// sendParked publishes records one by one and returns how many are acked, and why the next one is not.
func (t *term) sendParked(ctx context.Context, records []Record) (done int, failure error) {
	for i := range records {
		errs, err := t.publish(ctx, records[i:i+1])
		if failure := errors.Join(err, firstError(errs)); failure != nil {
			return i, failure
		}
	}
	return len(records), nil
}

// saveRedrive removes what is published, and parks the rest of the key again if the next message was refused.
func (t *term) saveRedrive(ctx context.Context, on lane, published []Record, refusal error) error {
	seqs := make([]int64, len(published))
	for i := range published {
		seqs[i] = published[i].Seq
	}
	return t.fenced(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			DELETE FROM `+t.r.table("outbox_parked")+`
			WHERE relay = $1 AND seq = ANY ($2)`, t.r.opts.Name, seqs); err != nil || refusal == nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			WITH head AS (
				SELECT min(seq) AS seq
				FROM `+t.r.table("outbox_parked")+`
				WHERE relay = $1 AND topic = $2 AND key = $3 AND state <> 'discarded'
			)
			UPDATE `+t.r.table("outbox_parked")+` p
			SET state = 'parked',
				error = CASE WHEN p.seq = head.seq THEN $4 ELSE p.error END,
				attempts = p.attempts + (p.seq = head.seq)::integer
			FROM head
			WHERE p.relay = $1 AND p.topic = $2 AND p.key = $3 AND p.state <> 'discarded'`,
			t.r.opts.Name, on.topic, on.key, refusal.Error())
		return err
	})
}
