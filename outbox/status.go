package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrUnknownRelay is returned for a relay name that the outbox does not have.
var ErrUnknownRelay = errors.New("the outbox has no relay of that name")

// Status is what is in an outbox, and who moves it.
type Status struct {
	Relays []RelayStatus
	// Ring are the leaves in the order in which writers come to them: the current one first.
	Ring []Leaf
	// Headroom is how long until writers come to a leaf that is not empty. They write into it all the same: what is not
	// given back in time costs space, and nothing else.
	Headroom time.Duration
	// OldestTransaction is the oldest one open in this database. Its own messages wait for its commit; nobody else's do.
	// It is zero if there is none. Other roles' transactions need pg_read_all_stats to be seen.
	OldestTransaction Transaction
}

// RelayStatus is how far one relay name is.
type RelayStatus struct {
	Name string
	// Leader is the process that leads, or "" while none does, and LeaseLeft how long it may be silent before another
	// one takes over.
	Leader    string
	LeaseLeft time.Duration
	// Epoch grows with every change of leader. 0: there never was one.
	Epoch int64
	// Backlog is how many messages wait for this relay, counted up to [BacklogLimit], and Oldest the age of the oldest
	// of them.
	Backlog int64
	Oldest  time.Duration
	// ParkedKeys and ParkedMessages are put aside and in no backlog.
	ParkedKeys, ParkedMessages int64
	// LastPublished is when the last message was acknowledged or put aside; zero if none ever was.
	LastPublished time.Time
	// CheckpointAge is how long ago the cursor was saved. An idle relay saves it every ten seconds at most.
	CheckpointAge time.Duration
	// Violations is how many messages were published behind a later one of their key, ViolationAt when the last one was,
	// and ViolationID which.
	Violations  int64
	ViolationAt time.Time
	ViolationID uuid.UUID

	cursor  cursor
	highest int64 // the highest seq that is known: published, or among those that wait
}

// Transaction is one that is open.
type Transaction struct {
	PID                            int
	User, Application, State, Wait string
	Age                            time.Duration
	// Query is what it ran last, or runs: its first 200 characters.
	Query string
}

// BacklogLimit bounds what counting a backlog may cost.
const BacklogLimit = 100_000

// Inspect reads the state of the outbox in schema, "" for the search_path's. It changes nothing and may be called at
// any time.
func Inspect(ctx context.Context, pool *pgxpool.Pool, schema string) (Status, error) {
	var s Status
	rows, _ := pool.Query(ctx, `
		SELECT relay
		FROM `+qualified(schema, "outbox_lease")+`
		ORDER BY relay`) // CollectRows reports the error
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return Status{}, fmt.Errorf("inspect outbox: %w", err)
	}
	for _, name := range names {
		relay, err := inspectRelay(ctx, pool, schema, name)
		if err != nil {
			return Status{}, fmt.Errorf("inspect relay %q: %w", name, err)
		}
		s.Relays = append(s.Relays, relay)
	}
	if s.Ring, s.Headroom, err = inspectRing(ctx, pool, schema); err != nil {
		return Status{}, fmt.Errorf("inspect the ring: %w", err)
	}
	if s.OldestTransaction, err = oldestTransaction(ctx, pool); err != nil {
		return Status{}, err
	}
	return s, nil
}

// inspectRelay reads one relay's state, or returns [ErrUnknownRelay].
func inspectRelay(ctx context.Context, pool *pgxpool.Pool, schema, name string) (RelayStatus, error) {
	s := RelayStatus{Name: name}
	var (
		left, age               float64
		published, violation    *time.Time
		violated                *uuid.UUID
		lease, cursors, parking = qualified(schema, "outbox_lease"), qualified(schema, "outbox_cursor"), qualified(schema, "outbox_parked")
	)
	err := pool.QueryRow(ctx, `
		SELECT l.epoch, CASE WHEN l.expires_at > clock_timestamp() THEN l.holder ELSE '' END,
			CASE WHEN l.expires_at > clock_timestamp()
				THEN extract(epoch FROM l.expires_at - clock_timestamp()) ELSE 0 END::float8,
			l.violations, l.violation_at, l.violation_id,
			c.prev::text, coalesce(c.cur::text, ''), c.last_seq, c.hi_seq, c.published_at,
			extract(epoch FROM clock_timestamp() - c.at)::float8, p.keys, p.messages
		FROM `+lease+` l
		CROSS JOIN LATERAL (
			SELECT *
			FROM `+cursors+` c
			WHERE c.relay = l.relay
			ORDER BY c.epoch DESC, c.n DESC
			LIMIT 1
		) c
		CROSS JOIN LATERAL (
			SELECT count(DISTINCT (topic, key)) AS keys, count(*) AS messages
			FROM `+parking+` p
			WHERE p.relay = l.relay AND p.state <> 'discarded'
		) p
		WHERE l.relay = $1`, name).Scan(&s.Epoch, &s.Leader, &left, &s.Violations, &violation, &violated,
		&s.cursor.prev, &s.cursor.cur, &s.cursor.lastSeq, &s.cursor.hiSeq, &published, &age, &s.ParkedKeys, &s.ParkedMessages)
	if errors.Is(err, pgx.ErrNoRows) {
		return RelayStatus{}, ErrUnknownRelay
	}
	if err != nil {
		return RelayStatus{}, err
	}
	s.LeaseLeft, s.CheckpointAge = seconds(left), seconds(age)
	if published != nil {
		s.LastPublished = *published
	}
	if violation != nil && violated != nil {
		s.ViolationAt, s.ViolationID = *violation, *violated
	}
	return s, countBacklog(ctx, pool, schema, &s)
}

// countBacklog fills in what waits: what prev does not see, less what is published of a big window. The union keeps both
// halves on the index: an OR would read the whole ring.
func countBacklog(ctx context.Context, pool *pgxpool.Pool, schema string, s *RelayStatus) error {
	var oldest float64
	err := pool.QueryRow(ctx, `
		WITH waiting AS (
			(SELECT o.created_at, o.seq
			FROM `+qualified(schema, "outbox")+` o
			WHERE o.txid >= pg_snapshot_xmax($1::text::pg_snapshot)
				AND ($2 = '' OR o.seq > $3 OR NOT pg_visible_in_snapshot(o.txid, nullif($2, '')::pg_snapshot))
			LIMIT $4)
			UNION ALL
			(SELECT o.created_at, o.seq
			FROM pg_snapshot_xip($1::text::pg_snapshot) AS x (txid)
			JOIN `+qualified(schema, "outbox")+` o ON o.txid = x.txid
			WHERE $2 = '' OR o.seq > $3 OR NOT pg_visible_in_snapshot(o.txid, nullif($2, '')::pg_snapshot)
			LIMIT $4)
		)
		SELECT least(count(*), $4), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8,
			greatest(max(seq), $5)
		FROM waiting`, s.cursor.prev, s.cursor.cur, s.cursor.lastSeq, BacklogLimit, s.cursor.hiSeq,
	).Scan(&s.Backlog, &oldest, &s.highest)
	if err != nil {
		return fmt.Errorf("count backlog: %w", err)
	}
	s.Oldest = seconds(oldest)
	return nil
}

func oldestTransaction(ctx context.Context, pool *pgxpool.Pool) (Transaction, error) {
	var (
		t   Transaction
		age float64
	)
	err := pool.QueryRow(ctx, `
		SELECT pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, ''),
			coalesce(wait_event_type || ' ' || wait_event, ''),
			extract(epoch FROM clock_timestamp() - xact_start)::float8, left(query, 200)
		FROM pg_stat_activity
		WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
			AND backend_type = 'client backend'
		ORDER BY xact_start
		LIMIT 1`).Scan(&t.PID, &t.User, &t.Application, &t.State, &t.Wait, &age, &t.Query)
	if errors.Is(err, pgx.ErrNoRows) {
		return Transaction{}, nil
	}
	if err != nil {
		return Transaction{}, fmt.Errorf("find the oldest transaction: %w", err)
	}
	t.Age = seconds(age)
	return t, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
