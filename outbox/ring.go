package outbox

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Leaf is one leaf of the ring: the messages of ten minutes.
type Leaf struct {
	Slot int
	// Bytes is what its messages take, without the index. 0: it is empty.
	Bytes int64
	// Oldest is the age of its first message.
	Oldest time.Duration
	// WaitsFor are the relays that have not passed every message in it.
	WaitsFor []string
}

// inspectRing reads the leaves, the current one first, and how long it takes writers to come to one that is not empty.
func inspectRing(ctx context.Context, pool *pgxpool.Pool, schema string) ([]Leaf, time.Duration, error) {
	var (
		current int
		into    float64
	)
	err := pool.QueryRow(ctx, `
		SELECT (floor(now / $1)::bigint % $2::bigint)::integer, now - floor(now / $1) * $1
		FROM (SELECT extract(epoch FROM clock_timestamp())::float8 AS now) t`,
		slotWidth.Seconds(), slots).Scan(&current, &into)
	if err != nil {
		return nil, 0, err
	}
	ring := make([]Leaf, slots)
	headroom, free := slotWidth-seconds(into), true
	for ahead := range ring {
		leaf := &ring[ahead]
		leaf.Slot = (current + ahead) % slots
		if err := inspectLeaf(ctx, pool, schema, leaf); err != nil {
			return nil, 0, fmt.Errorf("leaf %d: %w", leaf.Slot, err)
		}
		if ahead > 0 {
			if free = free && leaf.Bytes == 0; free {
				headroom += slotWidth
			}
		}
	}
	return ring, headroom, nil
}

func inspectLeaf(ctx context.Context, pool *pgxpool.Pool, schema string, leaf *Leaf) error {
	table := leafTable(schema, leaf.Slot)
	var oldest float64
	err := pool.QueryRow(ctx, `
		SELECT pg_relation_size($1::text::regclass), coalesce((
			SELECT extract(epoch FROM clock_timestamp() - created_at)
			FROM `+table+`
			ORDER BY txid, seq
			LIMIT 1
		), 0)::float8`, table).Scan(&leaf.Bytes, &oldest)
	if err != nil || leaf.Bytes == 0 {
		return err
	}
	leaf.Oldest = seconds(oldest)
	rows, _ := pool.Query(ctx, waitingSQL(schema, table)) // CollectRows reports the error
	leaf.WaitsFor, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

func leafTable(schema string, slot int) string {
	return qualified(schema, "outbox_"+strconv.Itoa(slot))
}

// waitingSQL asks which relays have yet to pass a row of leaf: one that their durable snapshot does not see.
func waitingSQL(schema, leaf string) string {
	return `
		SELECT l.relay
		FROM ` + qualified(schema, "outbox_lease") + ` l
		LEFT JOIN LATERAL (
			SELECT c.prev
			FROM ` + qualified(schema, "outbox_cursor") + ` c
			WHERE c.relay = l.relay
			ORDER BY c.epoch DESC, c.n DESC
			LIMIT 1
		) c ON true
		WHERE c.prev IS NULL
			OR EXISTS (SELECT FROM ` + leaf + ` o WHERE o.txid >= pg_snapshot_xmax(c.prev))
			OR EXISTS (
				SELECT FROM pg_snapshot_xip(c.prev) AS x (txid)
				JOIN ` + leaf + ` o ON o.txid = x.txid
			)
		ORDER BY l.relay`
}
