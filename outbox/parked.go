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

// Release orders the leader to publish all parked messages of a topic's key, in their order, within about a second. If
// one is refused again, it and those behind it stay parked. It returns how many there are, or [ErrNotParked].
func Release(ctx context.Context, pool *pgxpool.Pool, schema, topic, key string) (int, error) {
	tag, err := pool.Exec(ctx, `
		UPDATE `+qualified(schema, "outbox_parked")+`
		SET state = 'released'
		WHERE topic = $1 AND key = $2 AND state <> 'discarded'`, topic, key)
	if err != nil {
		return 0, fmt.Errorf("release parked key: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return 0, fmt.Errorf("release parked key: %w", ErrNotParked)
	}
	return int(tag.RowsAffected()), nil
}

// Discard gives a parked message up for good, and keeps who did it and why. The messages behind it stay parked until
// their key is released. It returns [ErrNotParked] for a message that is not parked.
func Discard(ctx context.Context, pool *pgxpool.Pool, schema string, id uuid.UUID, by, reason string) error {
	if by == "" || reason == "" {
		return errors.New("discard parked message: who and why are required")
	}
	tag, err := pool.Exec(ctx, `
		UPDATE `+qualified(schema, "outbox_parked")+`
		SET state = 'discarded', settled_by = $2, reason = $3, settled_at = clock_timestamp()
		WHERE id = $1::text::uuid AND state <> 'discarded'`, id.String(), by, reason)
	if err != nil {
		return fmt.Errorf("discard parked message %s: %w", id, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("discard parked message %s: %w", id, ErrNotParked)
	}
	return nil
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

// loadParked reads which keys are parked, and returns those that were released.
func (t *term) loadParked(ctx context.Context) ([]lane, error) {
	rows, err := t.r.pool.Query(ctx, `
		SELECT topic, key, bool_or(state = 'released')
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
