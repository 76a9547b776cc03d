package main

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/outbox"
)

// withInbox makes a database with an inbox and tables for effects, hands a pool to use, and removes it.
func (b *bench) withInbox(ctx context.Context, name string, use func(pool *pgxpool.Pool) error) error {
	return b.Server.Within(ctx, name, func(url string) error { return withPool(ctx, url, use) })
}

func withPool(ctx context.Context, url string, use func(pool *pgxpool.Pool) error) error {
	if err := pgserver.Migrate(ctx, url, map[string]fs.FS{"outbox_migrations": outbox.Migrations(), "inbox_migrations": inbox.Migrations()}); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, fmt.Sprintf("%s&pool_max_conns=%d", url, workers+6))
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `
		CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, id uuid NOT NULL);
		CREATE TABLE shared (sku int PRIMARY KEY, sold int NOT NULL);
		INSERT INTO shared SELECT sku, 0 FROM generate_series(1, 1000) AS sku`); err != nil {
		return err
	}
	return use(pool)
}

// fill runs a statement about many rows, and lets Postgres settle.
func fill(ctx context.Context, pool *pgxpool.Pool, statement string, args ...any) error {
	if err := fillOn(ctx, pool, statement, args...); err != nil {
		return err
	}
	return pgserver.Settle(ctx, pool)
}

// fillOn is fill with more to follow.
func fillOn(ctx context.Context, pool *pgxpool.Pool, statement string, args ...any) error {
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, statement, args...)
		return err
	}); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	return nil
}

// idOf is an SQL expression for a UUIDv7 of a time in milliseconds, and of n.
const idOf = `(lpad(to_hex(ms), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid`

// slotOf is the slot of a time in milliseconds.
const slotOf = `(ms / 86400000 % 32)::smallint`

// fillProcessed remembers n messages of group "before", from all days that a consumer still accepts.
func fillProcessed(ctx context.Context, pool *pgxpool.Pool, n int) error {
	const atOnce = 100_000
	for from := 1; from <= n; from += atOnce {
		if err := fillOn(ctx, pool, `
			INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
			SELECT `+slotOf+`, 'before', `+idOf+`, decode(md5(n::text), 'hex'), 'done'
			FROM (
				SELECT n, (extract(epoch FROM now()) * 1000)::bigint - n::bigint % 2400000 * 1000 AS ms
				FROM generate_series($1::integer, $2::integer) AS n
			) AS m`, from, min(n, from+atOnce-1)); err != nil {
			return err
		}
	}
	return pgserver.Settle(ctx, pool)
}

// fillHeld holds n keys, each with one message, until tomorrow.
func fillHeld(ctx context.Context, pool *pgxpool.Pool, group, topic string, n int) error {
	return fill(ctx, pool, `
		WITH held AS (
			INSERT INTO inbox_holds (consumer_group, topic, key, state, parked, type, error_class, fingerprint, next_at)
			SELECT $1, $2, 'held-' || n, 'held', 1, '`+messageType+`', 'transient', 'x', now() + interval '1 day'
			FROM generate_series(1, $3::integer) AS n
			RETURNING key
		)
		INSERT INTO parked_messages (consumer_group, topic, key, hold_key, kafka_partition, kafka_offset, event_id, type, record_key,
		                             record_time, headers, payload, state, attempts)
		SELECT $1, $2, key, key, 0, 0, gen_random_uuid(), '`+messageType+`', convert_to(key, 'UTF8'), now(), '[]', '{}', 'held', 3
		FROM held`, group, topic, n)
}
