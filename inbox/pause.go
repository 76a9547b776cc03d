package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrPaused is returned by [PauseGroup] for a group that somebody else has paused.
var ErrPaused = errors.New("the group is paused already")

// ErrPauseLost is returned for a pause whose lease has ended: the consumers are at work again, or will be.
var ErrPauseLost = errors.New("the pause has ended, its lease was not renewed in time")

// defaultPauseLease is a few times what consumers take to see a pause, and little enough to wait out.
const defaultPauseLease = 30 * time.Second

// Pause is a consumer group that was paused by [PauseGroup].
type Pause struct {
	pool  *pgxpool.Pool
	group string
	token uuid.UUID
	lease time.Duration
}

// PauseGroup pauses a consumer group: each of its consumers finishes the batches it has started, commits their offsets and
// leaves the group in Kafka, static members too, for it takes no offsets from outside while there are members. They come back after
// [Pause.Resume], or when the lease (default 30 s) has not been renewed by [Pause.Hold]. Keys that are held are drained all
// the same. The pool's search_path says of which schema; by and reason are shown by the consumers.
//
// The error is [ErrPaused] when somebody else has paused the group.
func PauseGroup(ctx context.Context, pool *pgxpool.Pool, group, by, reason string, lease time.Duration) (*Pause, error) {
	if lease <= 0 {
		lease = defaultPauseLease
	}
	p := &Pause{pool: pool, group: group, token: uuid.New(), lease: lease}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			INSERT INTO inbox_pauses AS p (consumer_group, token, by, reason, leased_until)
			VALUES ($1, $2::text::uuid, $3, $4, clock_timestamp() + $5 * interval '1 millisecond')
			ON CONFLICT (consumer_group) DO UPDATE
			SET token = excluded.token, by = excluded.by, reason = excluded.reason, since = excluded.since, leased_until = excluded.leased_until
			WHERE p.leased_until < clock_timestamp()`, group, p.token.String(), text(by), text(reason), lease.Milliseconds())
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return ErrPaused
		}
		// What is left of consumers that died while the group was paused.
		_, err = tx.Exec(ctx, `DELETE FROM inbox_paused_consumers WHERE consumer_group = $1`, group)
		return err
	})
	if errors.Is(err, ErrPaused) {
		return nil, describePause(ctx, pool, group)
	}
	if err != nil {
		return nil, fmt.Errorf("pause group %s: %w", group, err)
	}
	return p, nil
}

// describePause is ErrPaused with who has paused the group, and since when.
func describePause(ctx context.Context, pool *pgxpool.Pool, group string) error {
	var by, reason string
	var since time.Time
	err := pool.QueryRow(ctx, `SELECT by, reason, since FROM inbox_pauses WHERE consumer_group = $1`, group).Scan(&by, &reason, &since)
	if err != nil {
		return fmt.Errorf("pause group %s: %w", group, ErrPaused) // it may have ended meanwhile
	}
	return fmt.Errorf("pause group %s: %w, by %s since %s: %s", group, ErrPaused, by, since.Format(time.RFC3339), reason)
}

// Hold renews the lease until ctx ends, and then returns nil; it returns [ErrPauseLost] when the lease has ended before it
// could be renewed.
func (p *Pause) Hold(ctx context.Context) error {
	tick := time.NewTicker(p.lease / 4)
	defer tick.Stop()
	until := time.Now().Add(p.lease)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		began := time.Now()
		err := p.renew(ctx)
		switch {
		case err == nil:
			until = began.Add(p.lease)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrPauseLost) || time.Now().After(until):
			return fmt.Errorf("hold the pause of group %s: %w", p.group, errors.Join(ErrPauseLost, err))
		}
	}
}

func (p *Pause) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.lease/4)
	defer cancel()
	tag, err := p.pool.Exec(ctx, `
		UPDATE inbox_pauses SET leased_until = clock_timestamp() + $3 * interval '1 millisecond'
		WHERE consumer_group = $1 AND token = $2::text::uuid AND leased_until > clock_timestamp()`,
		p.group, p.token.String(), p.lease.Milliseconds())
	if err == nil && tag.RowsAffected() == 0 {
		return ErrPauseLost
	}
	return err
}

// Stopped names the consumers that have left the group for this pause, and still say so.
func (p *Pause) Stopped(ctx context.Context) ([]string, error) {
	rows, _ := p.pool.Query(ctx, `
		SELECT name FROM inbox_paused_consumers
		WHERE consumer_group = $1 AND token = $2::text::uuid AND seen_at > clock_timestamp() - interval '10 seconds'
		ORDER BY name`, p.group, p.token.String()) // CollectRows reports the error
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read who has stopped: %w", err)
	}
	return names, nil
}

// Resume ends the pause. It returns [ErrPauseLost] if it had ended before.
func (p *Pause) Resume(ctx context.Context) error {
	var live bool
	err := p.pool.QueryRow(ctx, `
		DELETE FROM inbox_pauses WHERE consumer_group = $1 AND token = $2::text::uuid
		RETURNING leased_until > clock_timestamp()`, p.group, p.token.String()).Scan(&live)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && !live:
		return fmt.Errorf("resume group %s: %w", p.group, ErrPauseLost)
	case err != nil:
		return fmt.Errorf("resume group %s: %w", p.group, err)
	}
	return nil
}

// CountProcessed returns how many of the messages with these ids the group has met before: to its consumers they are
// duplicates. The pool's search_path says of which schema.
func CountProcessed(ctx context.Context, pool *pgxpool.Pool, group string, ids []uuid.UUID) (int, error) {
	slots := make([]int16, len(ids))
	texts := make([]string, len(ids))
	for i, id := range ids {
		slots[i], texts[i] = slotOf(id), id.String()
	}
	var n int
	err := pool.QueryRow(ctx, `
		SELECT count(*)
		FROM unnest($2::smallint[], $3::text[]) AS m (slot, event_id)
		JOIN processed_messages p ON (p.consumer_group, p.event_id, p.slot) = ($1, m.event_id::uuid, m.slot)`,
		group, slots, texts).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count processed messages of group %s: %w", group, err)
	}
	return n, nil
}
