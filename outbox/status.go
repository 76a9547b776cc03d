package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Status is what is in an outbox, and who moves it.
type Status struct {
	Relays []RelayStatus
	// Ring is how many bytes each leaf of the ring takes, without its index.
	Ring []int64
	// SequenceCache must be 1: with more, each connection numbers its own messages, and keys get out of order.
	SequenceCache int64
	// OldestTransaction is the age of the oldest transaction open in this database, and OldestPID its process. Its own
	// messages wait for its commit; nobody else's do. Other roles' transactions need pg_read_all_stats to be seen.
	OldestTransaction time.Duration
	OldestPID         int
}

// RelayStatus is how far one relay name is.
type RelayStatus struct {
	Name string
	// Leader is the process that leads, or "" while none does.
	Leader string
	// Epoch grows with every change of leader.
	Epoch int64
	// Backlog is how many messages wait for this relay, counted up to the limit asked for, and Oldest the age of the
	// oldest of them.
	Backlog int64
	Oldest  time.Duration
	// ParkedKeys and ParkedMessages are put aside and in no backlog.
	ParkedKeys, ParkedMessages int64
	// CheckpointAge is how long ago the cursor was saved. An idle relay saves it every ten seconds at most.
	CheckpointAge time.Duration
}

// backlogLimit bounds what a count of the backlog may cost.
const backlogLimit = 1_000_000

// Inspect reads the state of the outbox in schema, "" for the search_path's. It changes nothing and may be called at
// any time.
func Inspect(ctx context.Context, pool *pgxpool.Pool, schema string) (Status, error) {
	var s Status
	names, err := relayNames(ctx, pool, schema)
	if err != nil {
		return Status{}, fmt.Errorf("inspect outbox: %w", err)
	}
	for _, name := range names {
		relay, err := inspectRelay(ctx, pool, schema, name, backlogLimit)
		if err != nil {
			return Status{}, fmt.Errorf("inspect relay %s: %w", name, err)
		}
		s.Relays = append(s.Relays, relay)
	}
	for slot := range slots {
		var bytes int64
		if err := pool.QueryRow(ctx, `SELECT pg_relation_size($1::text::regclass)`,
			qualified(schema, fmt.Sprintf("outbox_%d", slot))).Scan(&bytes); err != nil {
			return Status{}, fmt.Errorf("measure the ring: %w", err)
		}
		s.Ring = append(s.Ring, bytes)
	}
	err = pool.QueryRow(ctx, `SELECT seqcache FROM pg_sequence WHERE seqrelid = $1::text::regclass`,
		qualified(schema, "outbox_seq_seq")).Scan(&s.SequenceCache)
	if err != nil {
		return Status{}, fmt.Errorf("inspect the sequence: %w", err)
	}
	if s.OldestTransaction, s.OldestPID, err = oldestTransaction(ctx, pool); err != nil {
		return Status{}, err
	}
	return s, nil
}

func relayNames(ctx context.Context, pool *pgxpool.Pool, schema string) ([]string, error) {
	rows, _ := pool.Query(ctx, `
		SELECT relay
		FROM `+qualified(schema, "outbox_lease")+`
		ORDER BY relay`) // CollectRows reports the error
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// inspectRelay reads one relay's state, and counts its backlog up to limit.
func inspectRelay(ctx context.Context, pool *pgxpool.Pool, schema, name string, limit int) (RelayStatus, error) {
	s := RelayStatus{Name: name}
	var (
		oldest, age float64
		prev, cur   string
		lastSeq     int64
	)
	err := pool.QueryRow(ctx, `
		SELECT l.epoch, CASE WHEN l.expires_at > clock_timestamp() THEN l.holder ELSE '' END,
			c.prev::text, coalesce(c.cur::text, ''), c.last_seq, extract(epoch FROM clock_timestamp() - c.at)::float8,
			(SELECT count(DISTINCT (topic, key)) FROM `+qualified(schema, "outbox_parked")+`
				WHERE relay = l.relay AND state <> 'discarded'),
			(SELECT count(*) FROM `+qualified(schema, "outbox_parked")+`
				WHERE relay = l.relay AND state <> 'discarded')
		FROM `+qualified(schema, "outbox_lease")+` l
		CROSS JOIN LATERAL (
			SELECT *
			FROM `+qualified(schema, "outbox_cursor")+` c
			WHERE c.relay = l.relay
			ORDER BY c.epoch DESC, c.n DESC
			LIMIT 1
		) c
		WHERE l.relay = $1`, name).Scan(&s.Epoch, &s.Leader, &prev, &cur, &lastSeq, &age, &s.ParkedKeys, &s.ParkedMessages)
	if err != nil {
		return RelayStatus{}, err
	}
	// What waits is what prev does not see, less what is published of a big window. The union keeps both halves on the
	// index: an OR would read the whole ring.
	err = pool.QueryRow(ctx, `
		WITH waiting AS (
			(SELECT o.created_at
			FROM `+qualified(schema, "outbox")+` o
			WHERE o.txid >= pg_snapshot_xmax($1::text::pg_snapshot)
				AND ($2 = '' OR o.seq > $3 OR NOT pg_visible_in_snapshot(o.txid, nullif($2, '')::pg_snapshot))
			LIMIT $4)
			UNION ALL
			(SELECT o.created_at
			FROM pg_snapshot_xip($1::text::pg_snapshot) AS x (txid)
			JOIN `+qualified(schema, "outbox")+` o ON o.txid = x.txid
			WHERE $2 = '' OR o.seq > $3 OR NOT pg_visible_in_snapshot(o.txid, nullif($2, '')::pg_snapshot)
			LIMIT $4)
		)
		SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
		FROM waiting`, prev, cur, lastSeq, limit).Scan(&s.Backlog, &oldest)
	if err != nil {
		return RelayStatus{}, fmt.Errorf("count backlog: %w", err)
	}
	s.Oldest, s.CheckpointAge = seconds(oldest), seconds(age)
	return s, nil
}

func oldestTransaction(ctx context.Context, pool *pgxpool.Pool) (age time.Duration, pid int, err error) {
	var sec float64
	err = pool.QueryRow(ctx, `
		SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8,
			coalesce((array_agg(pid ORDER BY xact_start))[1], 0)
		FROM pg_stat_activity
		WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
			AND backend_type = 'client backend'`).Scan(&sec, &pid)
	if err != nil {
		return 0, 0, fmt.Errorf("find the oldest transaction: %w", err)
	}
	return seconds(sec), pid, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
