package main

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/outbox"
)

const (
	schema     = "shop"
	topic      = "bench"
	partitions = 12
)

// withOutbox makes a database with an outbox, hands its URL to use, and removes it.
func (b *bench) withOutbox(ctx context.Context, name string, use func(url string) error) error {
	return b.Server.Within(ctx, name, func(url string) error {
		if err := execute(ctx, url, `CREATE SCHEMA `+schema,
			`CREATE TABLE `+schema+`.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)`); err != nil {
			return err
		}
		sets := map[string]fs.FS{"outbox_migrations": outbox.Migrations()}
		if err := pgserver.Migrate(ctx, url+"&search_path="+schema, sets); err != nil {
			return err
		}
		return use(url)
	})
}

// withBacklog is withOutbox with a backlog.
func (b *bench) withBacklog(ctx context.Context, name string, use func(url string) error) error {
	return b.withOutbox(ctx, name, func(url string) error {
		if err := fill(ctx, url, b.backlog); err != nil {
			return err
		}
		return use(url)
	})
}

// execute runs statements on a connection of their own.
func execute(ctx context.Context, url string, statements ...string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// payload is an SQL expression for 300 bytes of JSON that compress about as JSON does. n is the message's number.
const payload = `'{"order_id":"' || gen_random_uuid() || '","note":"' ||
	left(md5(n::text) || md5('a' || n) || md5('b' || n) || md5('c' || n) || md5('d' || n) || md5('e' || n) || md5('f' || n) || md5('g' || n), 239) || '"}'`

// fill commits n messages with 10,000 keys, a hundred a transaction.
func fill(ctx context.Context, url string, n int) error {
	return inHundreds(ctx, url, n, `
		INSERT INTO `+schema+`.outbox (id, topic, key, type, content_type, payload)
		SELECT gen_random_uuid(), '`+topic+`', 'user-' || n % 10000, 'bench.written.v1', 'application/json', convert_to(`+payload+`, 'UTF8')
		FROM generate_series(`)
}

// inHundreds runs a statement that ends in an open generate_series( over n numbers, a hundred a transaction.
func inHundreds(ctx context.Context, url string, n int, statement string) error {
	err := execute(ctx, url, `SET synchronous_commit = off`, fmt.Sprintf(`
		DO $do$ BEGIN
			FOR i IN 0..%d LOOP
				%s i * 100 + 1, (i + 1) * 100) AS n;
				COMMIT;
			END LOOP;
		END $do$`, n/100-1, statement),
		`ANALYZE`,    // the forwarder's plan needs it
		`CHECKPOINT`) // or one would fall into what is measured
	if err != nil {
		return fmt.Errorf("write %d messages: %w", n, err)
	}
	return nil
}
