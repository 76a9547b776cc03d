package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// cursor is how far a relay is. Everything visible at prev is published. If cur is set, a big window is being worked:
// of what is visible at cur and was not at prev, everything up to lastSeq is published too.
type cursor struct {
	prev, cur string // as Postgres prints a pg_snapshot; cur may be ""
	lastSeq   int64
	hiSeq     int64     // the highest seq published so far
	published time.Time // when the last message was; zero if none was
}

// loadCursor reads the durable cursor. It is always safe to start from: every transaction id that it mentions was given
// out before the record of its own commit, so no crash gives one of them out again.
func (r *Relay) loadCursor(ctx context.Context) (cursor, error) {
	var (
		c         cursor
		published *time.Time
	)
	err := r.pool.QueryRow(ctx, `
		SELECT prev::text, coalesce(cur::text, ''), last_seq, hi_seq, published_at
		FROM `+r.table("outbox_cursor")+`
		WHERE relay = $1
		ORDER BY epoch DESC, n DESC
		LIMIT 1`, r.opts.Name).Scan(&c.prev, &c.cur, &c.lastSeq, &c.hiSeq, &published)
	if err != nil {
		return cursor{}, fmt.Errorf("load cursor: %w", err)
	}
	if published != nil {
		c.published = *published
	}
	return c, nil
}

// checkpoint makes t's cursor durable, together with the messages that were put aside on the way to it.
//
// The row is written only under the leader's epoch, and only on the server that the snapshots in it are from: after a
// crash the ids of lost transactions are given out again, and a snapshot from before would hide their new owners. The
// shared lock makes a new leader wait until this row is there to be loaded.
//
// It is made even if ctx has ended: what is acked is acked. After a failure the term's memory is not to be trusted.
func (t *term) checkpoint(ctx context.Context, aside []parkedRow) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(t.lease.left(), 0))
	defer cancel()
	save := func() error { return t.saveCursor(ctx, t.r.pool) }
	if len(aside) > 0 || t.disorder.messages > 0 {
		save = func() error {
			return t.r.transact(ctx, func(tx pgx.Tx) error {
				if err := t.saveCursor(ctx, tx); err != nil {
					return err
				}
				if err := t.saveDisorder(ctx, tx); err != nil {
					return err
				}
				return t.r.insertParked(ctx, tx, aside)
			})
		}
	}
	if err := save(); err != nil {
		t.broken = true
		return err
	}
	t.n++
	t.durable, t.unsaved, t.disorder = t.at, time.Time{}, disorder{}
	return nil
}

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func (t *term) saveCursor(ctx context.Context, db execer) error {
	var published *time.Time
	if !t.at.published.IsZero() {
		published = &t.at.published
	}
	tag, err := db.Exec(ctx, `
		INSERT INTO `+t.r.table("outbox_cursor")+` (relay, epoch, n, prev, cur, last_seq, hi_seq, published_at)
		SELECT relay, epoch, $3::bigint, $4::text::pg_snapshot, nullif($5::text, '')::pg_snapshot, $6::bigint, $7::bigint,
			$9::timestamptz
		FROM `+t.r.table("outbox_lease")+`
		WHERE relay = $1 AND epoch = $2 AND `+t.r.table("outbox_incarnation")+`() = $8
		FOR SHARE`,
		t.r.opts.Name, t.lease.epoch, t.n+1, t.at.prev, t.at.cur, t.at.lastSeq, t.at.hiSeq, t.incarnation, published)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if tag.RowsAffected() != 1 {
		t.r.metrics.fenced(ctx)
		return fmt.Errorf("checkpoint: %w", errFenced)
	}
	return nil
}

// disorder is what was published behind a later message of its key since the last checkpoint.
type disorder struct {
	messages int64
	last     uuid.UUID
}

func (t *term) saveDisorder(ctx context.Context, tx pgx.Tx) error {
	if t.disorder.messages == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, `
		UPDATE `+t.r.table("outbox_lease")+`
		SET violations = violations + $2, violation_at = clock_timestamp(), violation_id = $3::text::uuid
		WHERE relay = $1`, t.r.opts.Name, t.disorder.messages, t.disorder.last.String()); err != nil {
		return fmt.Errorf("note messages out of order: %w", err)
	}
	return nil
}

// pruneCursor deletes all but the newest rows, whichever epoch wrote them.
func (t *term) pruneCursor(ctx context.Context) error {
	_, err := t.r.pool.Exec(ctx, `
		DELETE FROM `+t.r.table("outbox_cursor")+`
		WHERE relay = $1 AND (epoch, n) < (
			SELECT epoch, n
			FROM `+t.r.table("outbox_cursor")+`
			WHERE relay = $1
			ORDER BY epoch DESC, n DESC
			OFFSET 9
			LIMIT 1
		)`, t.r.opts.Name)
	if err != nil {
		return fmt.Errorf("prune cursor: %w", err)
	}
	return nil
}
