package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The ring, as the migration lays it out.
const (
	slots     = 8
	slotWidth = 10 * time.Minute
)

func (r *Relay) leaf(slot int) string { return leafTable(r.opts.Schema, slot) }

// reclaim truncates the leaves whose rows are all older than the retention and passed by every relay. The age comes
// from the clock and only saves attempts; whether a row is passed never does.
func (r *Relay) reclaim(ctx context.Context) error {
	var current int
	err := r.pool.QueryRow(ctx, `
		SELECT (floor(extract(epoch FROM clock_timestamp()) / $1::float8)::bigint % $2::bigint)::integer`,
		r.slotWidth.Seconds(), slots).Scan(&current)
	if err != nil {
		return fmt.Errorf("find the current leaf: %w", err)
	}
	// A leaf that was current `back` slots ago has rows that are at least back-1 widths old.
	for back := slots - 1; time.Duration(back-1)*r.slotWidth >= r.opts.Retention; back-- {
		slot := (current - back + slots) % slots
		done, err := r.truncate(ctx, slot)
		if err != nil {
			return err
		}
		if done {
			r.log.InfoContext(ctx, "leaf truncated", "slot", slot)
			r.metrics.truncated(ctx)
		}
	}
	return nil
}

// truncate empties a leaf if every relay has passed what is in it. It reports false if the leaf is empty, in use, or
// not passed.
func (r *Relay) truncate(ctx context.Context, slot int) (bool, error) {
	leaf := r.leaf(slot)
	var bytes int64
	if err := r.pool.QueryRow(ctx, `SELECT pg_relation_size($1::text::regclass)`, leaf).Scan(&bytes); err != nil {
		return false, fmt.Errorf("measure leaf %d: %w", slot, err)
	}
	if bytes == 0 {
		return false, nil
	}
	done := false
	err := r.transact(ctx, func(tx pgx.Tx) error {
		// First the lock, without waiting: a waiting one would stall the polls behind it. Then, in a statement of its
		// own, the check: one that is older than the lock does not see what a writer committed in between.
		if _, err := tx.Exec(ctx, `LOCK TABLE `+leaf+` IN ACCESS EXCLUSIVE MODE NOWAIT`); err != nil {
			return err
		}
		var needed bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (`+waitingSQL(r.opts.Schema, leaf)+`)`).Scan(&needed); err != nil || needed {
			return err
		}
		_, err := tx.Exec(ctx, `TRUNCATE `+leaf)
		done = err == nil
		return err
	})
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "55P03" { // lock_not_available: a writer, a dump or a vacuum is in it
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("truncate leaf %d: %w", slot, err)
	}
	return done, nil
}
