package inbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// parkedHead is the first parked message of a key.
type parkedHead struct {
	id      int64
	state   string
	counted int
	item    *item
}

// head loads the head of a claimed key as the message it was; nil when nothing is parked.
func (c *Consumer) head(ctx context.Context, h hold) (*parkedHead, error) {
	var p parkedHead
	var eventID uuid.UUID
	var headers headerList
	var first *time.Time
	var parkedAt time.Time
	it := &item{key: h.key}
	m := &it.msg
	err := c.pool.QueryRow(ctx, c.store.sql(`
		SELECT id, state, counted, attempts, first_failed_at, event_id, kafka_partition, kafka_offset, record_key, record_time,
		       headers, payload, parked_at
		FROM {parked_messages}
		WHERE consumer_group = $1 AND topic = $2 AND hold_key = $3
		ORDER BY id
		LIMIT 1`), c.group, h.topic, h.key).Scan(&p.id, &p.state, &p.counted, &it.attempts, &first, &eventID,
		&m.Partition, &m.Offset, &it.recordKey, &it.recordTime, &headers, &m.Payload, &parkedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load head of held key: %w", err)
	}
	if first != nil {
		it.firstFailed = *first
	}
	m.Topic, m.Key, m.Headers = h.topic, string(it.recordKey), headers
	sum := sha256.Sum256(m.Payload)
	it.hash = sum[:16]
	// Judged as of its arrival: waiting does not make an id too old.
	if !c.decoder().identify(it, parkedAt) {
		it.route = c.routes.fallback[h.topic]
		it.verdict = &handlerError{kind: held, class: ClassUnsupportedVersion, err: fmt.Errorf("no route for %s any more", text(m.Type))}
	}
	if it.verdict == nil && m.ID != eventID {
		it.verdict = malformed(ClassIDConflict, errors.New("the id belongs to a message with another payload"))
	}
	it.dedupID = eventID
	p.item = it
	return &p, nil
}

// fence locks the hold if it is still this drainer's, or returns errFenced.
func (s store) fence(ctx context.Context, tx pgx.Tx, h hold) error {
	var one int
	err := tx.QueryRow(ctx, s.sql(`
		SELECT 1 FROM {inbox_holds}
		WHERE consumer_group = $1 AND topic = $2 AND key = $3 AND lease_token = $4::text::uuid
		FOR UPDATE`), s.group, h.topic, h.key, h.token.String()).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		return errFenced
	}
	if err != nil {
		return fmt.Errorf("lock hold: %w", err)
	}
	return nil
}

// unpark removes the head after its handler, in the handler's transaction.
func (s store) unpark(ctx context.Context, tx pgx.Tx, h hold, head *parkedHead, state string) error {
	if err := s.fence(ctx, tx, h); err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, s.sql(`DELETE FROM {parked_messages} WHERE id = $1`), head.id)
	if err != nil {
		return fmt.Errorf("delete parked message: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return errFenced
	}
	if err := s.settle(ctx, tx, []*item{head.item}, state); err != nil {
		return err
	}
	return s.advance(ctx, tx, h.topic, h.key, 1)
}

// advance drops a hold with nothing behind it; otherwise it makes the first message in line the head. removed messages
// left the line in this transaction, and the caller holds the hold's lock.
func (s store) advance(ctx context.Context, tx pgx.Tx, topic, key string, removed int) error {
	// A statement of its own: it must see what was appended while the caller waited for the lock.
	tag, err := tx.Exec(ctx, s.sql(`
		DELETE FROM {inbox_holds} h
		WHERE h.consumer_group = $1 AND h.topic = $2 AND h.key = $3
		  AND NOT EXISTS (
		      SELECT FROM {parked_messages} p
		      WHERE (p.consumer_group, p.topic, p.hold_key) = (h.consumer_group, h.topic, h.key))`), s.group, topic, key)
	if err != nil {
		return fmt.Errorf("drop hold: %w", err)
	}
	if tag.RowsAffected() > 0 {
		return nil
	}
	_, err = tx.Exec(ctx, s.sql(`
		UPDATE {inbox_holds} h
		SET parked = greatest(h.parked - $4, 0), state = CASE p.state WHEN 'dead' THEN 'dead' ELSE 'held' END, type = p.type,
		    error_class = p.error_class, fingerprint = p.fingerprint, tries = 0, next_at = now(),
		    leased_until = CASE WHEN h.lease_token IS NOT NULL THEN clock_timestamp() + $5 * interval '1 millisecond' END
		FROM (
			SELECT state, type, error_class, fingerprint FROM {parked_messages}
			WHERE consumer_group = $1 AND topic = $2 AND hold_key = $3
			ORDER BY id
			LIMIT 1
		) p
		WHERE h.consumer_group = $1 AND h.topic = $2 AND h.key = $3`), s.group, topic, key, removed, s.lease.Milliseconds())
	if err != nil {
		return fmt.Errorf("advance hold: %w", err)
	}
	return nil
}

// rest gives up the lease of a key whose head is not to be tried: it is dead, or gone.
func (s store) rest(ctx context.Context, pool *pgxpool.Pool, h hold) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := s.fence(ctx, tx, h); err != nil {
			return err
		}
		if err := s.advance(ctx, tx, h.topic, h.key, 0); err != nil {
			return err
		}
		return s.unlease(ctx, tx, h)
	})
	if errors.Is(err, errFenced) {
		return nil
	}
	return err
}

func (s store) unlease(ctx context.Context, tx pgx.Tx, h hold) error {
	_, err := tx.Exec(ctx, s.sql(`
		UPDATE {inbox_holds} SET lease_token = NULL, leased_until = NULL
		WHERE consumer_group = $1 AND topic = $2 AND key = $3`), s.group, h.topic, h.key)
	if err != nil {
		return fmt.Errorf("release hold: %w", err)
	}
	return nil
}

// postpone gives the lease back without a try. When that fails too, the lease runs out.
func (s store) postpone(ctx context.Context, pool *pgxpool.Pool, h hold, wait time.Duration) error {
	_, err := pool.Exec(ctx, s.sql(`
		UPDATE {inbox_holds}
		SET lease_token = NULL, leased_until = NULL, next_at = greatest(next_at, now() + $5 * interval '1 millisecond')
		WHERE consumer_group = $1 AND topic = $2 AND key = $3 AND lease_token = $4::text::uuid`),
		s.group, h.topic, h.key, h.token.String(), wait.Milliseconds())
	if err != nil {
		return fmt.Errorf("postpone held key: %w", err)
	}
	return nil
}

// failHead books a failed try. The caller has fenced.
func (s store) failHead(ctx context.Context, tx pgx.Tx, h hold, head *parkedHead, f failure, counted int, gone bool, next time.Duration) error {
	state := StateHeld
	if gone {
		state = StateDead
	}
	release := gone && head.item.route.Policy == ReleaseKey
	tag, err := tx.Exec(ctx, s.sql(`
		UPDATE {parked_messages}
		SET state = $2, attempts = $3, counted = $4, error_class = $5, error = $6, fingerprint = $7,
		    first_failed_at = coalesce(first_failed_at, $8), last_failed_at = $9,
		    hold_key = CASE WHEN $10 THEN NULL ELSE hold_key END
		WHERE id = $1`), head.id, state, f.attempts, counted, f.class, f.text, f.fingerprint, f.first, f.last, release)
	if err != nil {
		return fmt.Errorf("update parked message: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return errFenced
	}
	if gone {
		if err := s.copyDead(ctx, tx, []parking{{item: head.item, failure: f}}); err != nil {
			return fmt.Errorf("copy dead letter: %w", err)
		}
	}
	if release {
		return s.advance(ctx, tx, h.topic, h.key, 1)
	}
	_, err = tx.Exec(ctx, s.sql(`
		UPDATE {inbox_holds}
		SET state = $4, tries = tries + 1, next_at = now() + $5 * interval '1 millisecond', error_class = $6,
		    fingerprint = $7, lease_token = NULL, leased_until = NULL
		WHERE consumer_group = $1 AND topic = $2 AND key = $3`),
		s.group, h.topic, h.key, state, next.Milliseconds(), f.class, f.fingerprint)
	if err != nil {
		return fmt.Errorf("update hold: %w", err)
	}
	return nil
}

// inFailedTx reports that a statement met a transaction that a handler had broken before.
func inFailedTx(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "25P02"
}

// violated reports that a commit failed for what the handler wrote, or because it swallowed an error.
func violated(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && len(pg.Code) == 5 && pg.Code[:2] == "23"
}
