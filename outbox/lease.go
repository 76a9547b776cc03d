package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// errFenced says that another relay leads, or that the server is not the one that the relay knew.
var errFenced = errors.New("the lease or the server has changed")

// lease is the right to publish. Whoever holds the highest epoch may move the cursor; the clock only decides when
// another may try, so a wrong one costs duplicates and never order.
type lease struct {
	epoch int64
	until atomic.Int64 // nanoseconds since start
	start time.Time    // on the monotonic clock
	term  time.Duration
}

func (l *lease) renewed(asked time.Time) { l.until.Store(int64(asked.Sub(l.start) + l.term)) }

// left is how much of the lease remains at least.
func (l *lease) left() time.Duration { return time.Duration(l.until.Load()) - time.Since(l.start) }

// stand waits until this relay leads, or ctx ends.
func (r *Relay) stand(ctx context.Context) (*lease, error) {
	// An attempt that finds a living leader writes nothing and takes no transaction id.
	const attempt = 150 * time.Millisecond
	if err := r.enroll(ctx); err != nil {
		return nil, err
	}
	for {
		l, err := r.acquire(ctx)
		if l != nil || err != nil {
			return l, err
		}
		sleep(ctx, attempt)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// enroll makes a relay name known. A new one starts before the first message.
func (r *Relay) enroll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Lease)
	defer cancel()
	var known bool
	err := r.pool.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM `+r.table("outbox_lease")+` WHERE relay = $1)`, r.opts.Name).Scan(&known)
	if err != nil {
		return fmt.Errorf("look for relay %q: %w", r.opts.Name, err)
	}
	if known {
		return nil
	}
	return r.transact(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			INSERT INTO `+r.table("outbox_lease")+` (relay) VALUES ($1)
			ON CONFLICT DO NOTHING`, r.opts.Name); err != nil {
			return fmt.Errorf("add relay %q: %w", r.opts.Name, err)
		}
		// A literal: a snapshot taken by a transaction that has written leaves out that transaction.
		if _, err := tx.Exec(ctx, `
			INSERT INTO `+r.table("outbox_cursor")+` (relay, epoch, n, prev) VALUES ($1, 0, 0, '3:3:')
			ON CONFLICT DO NOTHING`, r.opts.Name); err != nil {
			return fmt.Errorf("seed cursor of relay %q: %w", r.opts.Name, err)
		}
		return nil
	})
}

// acquire takes the lease if it is free, or if this very relay lost hold of it in an error. It returns nil if another
// relay has it.
func (r *Relay) acquire(ctx context.Context) (*lease, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Lease)
	defer cancel()
	l := &lease{start: time.Now(), term: r.opts.Lease}
	err := r.pool.QueryRow(ctx, `
		UPDATE `+r.table("outbox_lease")+`
		SET epoch = epoch + 1, holder = $2, expires_at = clock_timestamp() + $3::float8 * interval '1 second'
		WHERE relay = $1 AND (expires_at <= clock_timestamp() OR holder = $2)
		RETURNING epoch`, r.opts.Name, r.holder, r.opts.Lease.Seconds()).Scan(&l.epoch)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("acquire lease: %w", err)
	}
	l.renewed(l.start)
	return l, nil
}

// keep renews l three times per lease until ctx ends, or returns why it could not.
func (r *Relay) keep(ctx context.Context, l *lease) error {
	ticker := time.NewTicker(r.opts.Lease / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := r.renew(ctx, l); err != nil {
			return err
		}
	}
}

// renew asks until Postgres answers or the lease is over.
func (r *Relay) renew(ctx context.Context, l *lease) error {
	ctx, cancel := context.WithTimeout(ctx, max(l.left(), 0))
	defer cancel()
	for {
		asked := time.Now()
		tag, err := r.pool.Exec(ctx, `
			UPDATE `+r.table("outbox_lease")+`
			SET expires_at = clock_timestamp() + $3::float8 * interval '1 second'
			WHERE relay = $1 AND epoch = $2`, r.opts.Name, l.epoch, r.opts.Lease.Seconds())
		if err == nil && tag.RowsAffected() == 1 {
			l.renewed(asked)
			return nil
		}
		if err == nil {
			r.metrics.fenced(ctx)
			return fmt.Errorf("renew lease: %w", errFenced)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("renew lease: %w", err)
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// release gives the lease away, so that a standby need not wait for its end.
func (r *Relay) release(ctx context.Context, l *lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.Lease/2)
	defer cancel()
	_, err := r.pool.Exec(ctx, `
		UPDATE `+r.table("outbox_lease")+`
		SET expires_at = '-infinity', holder = ''
		WHERE relay = $1 AND epoch = $2`, r.opts.Name, l.epoch)
	if err != nil {
		r.log.WarnContext(ctx, "lease not released, a standby waits for its end", "error", err)
	}
}

func (r *Relay) table(name string) string { return qualified(r.opts.Schema, name) }

// transact runs do in a transaction whose statements each see what is committed by then.
//
// A relay that is paused or cut off in it keeps its locks: on the lease, which its successor needs, or on a leaf, which
// every poll reads. Postgres ends a transaction in which it has heard nothing for as long as the shortest lease.
func (r *Relay) transact(ctx context.Context, do func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = '1s'`); err != nil {
			return fmt.Errorf("bound the silence in a transaction: %w", err)
		}
		return do(tx)
	})
}
