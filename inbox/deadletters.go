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

// States of a parked message.
const (
	StateWaiting = "waiting" // behind the head of its key
	StateHeld    = "held"    // failed, will be tried again
	StateDead    = "dead"    // given up until a person acts
)

// Parked is one parked message. Messages with the same group, topic and key are tried in the order of ID.
type Parked struct {
	ID            int64
	Group         string
	Topic         string
	Partition     int32
	Offset        int64
	Key           string    // in hex behind \x when it is no text, its hash behind \sha256 above 1024 bytes
	EventID       uuid.UUID // made from topic, partition and offset when the record has no usable id of its own
	Type          string
	State         string
	Attempts      int
	Class, Error  string // of the last failure; "" while waiting
	Fingerprint   string // the same for errors that differ in ids and numbers only; "" while waiting
	ParkedAt      time.Time
	FirstFailedAt time.Time // zero while waiting
	LastFailedAt  time.Time
	NextTryAt     time.Time // of the key; zero when the message waits for a person
	Released      bool      // dead, and later messages of its key pass it

	// What follows is filled by [ShowParked] only.
	RecordKey  []byte // nil when the record had none
	RecordTime time.Time
	Headers    []Header
	Payload    []byte // as the last edit left it
	Edits      []Edit // the first one first
}

// Filter selects parked messages. Empty fields select everything.
type Filter struct {
	Group, Topic, Key string
	Type, Class       string
	Fingerprint       string
	State             string
	IDs               []int64
	AfterID           int64 // for the next page: the last ID seen
	Limit             int   // default 1000
}

// ListParked returns the parked messages that f selects, in the order of their IDs. The pool's search_path says of
// which schema.
func ListParked(ctx context.Context, pool *pgxpool.Pool, f Filter) ([]Parked, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 1000
	}
	rows, _ := pool.Query(ctx, selectParked+whereParked+`
		ORDER BY p.id
		LIMIT $10`, append(f.args(), limit)...) // CollectRows reports the error
	parked, err := pgx.CollectRows(rows, scanParked)
	if err != nil {
		return nil, fmt.Errorf("list parked messages: %w", err)
	}
	return parked, nil
}

// ShowParked returns one parked message with its headers, payload and edits, or [ErrNotFound].
func ShowParked(ctx context.Context, pool *pgxpool.Pool, id int64) (Parked, error) {
	p, err := onlyParked(ctx, pool, id)
	if err != nil {
		return Parked{}, err
	}
	var headers headerList
	err = pool.QueryRow(ctx, `SELECT record_key, record_time, headers, payload FROM parked_messages WHERE id = $1`, id).
		Scan(&p.RecordKey, &p.RecordTime, &headers, &p.Payload)
	if errors.Is(err, pgx.ErrNoRows) { // resolved since
		return Parked{}, fmt.Errorf("%d: %w", id, ErrNotFound)
	}
	if err != nil {
		return Parked{}, fmt.Errorf("load parked message %d: %w", id, err)
	}
	p.Headers = headers
	p.Edits, err = edits(ctx, pool, p.Group, p.EventID)
	return p, err
}

// onlyParked returns a parked message without its content.
func onlyParked(ctx context.Context, pool *pgxpool.Pool, id int64) (Parked, error) {
	rows, _ := pool.Query(ctx, selectParked+` WHERE p.id = $1`, id) // CollectExactlyOneRow reports the error
	p, err := pgx.CollectExactlyOneRow(rows, scanParked)
	if errors.Is(err, pgx.ErrNoRows) {
		return Parked{}, fmt.Errorf("%d: %w", id, ErrNotFound)
	}
	if err != nil {
		return Parked{}, fmt.Errorf("load parked message %d: %w", id, err)
	}
	return p, nil
}

const selectParked = `
		SELECT p.id, p.consumer_group, p.topic, p.kafka_partition, p.kafka_offset, p.key, p.event_id, p.type, p.state,
		       p.attempts, coalesce(p.error_class, ''), coalesce(p.error, ''), coalesce(p.fingerprint, ''), p.parked_at,
		       p.first_failed_at, p.last_failed_at, CASE WHEN h.state = 'held' THEN h.next_at END,
		       p.hold_key IS NULL
		FROM parked_messages p
		LEFT JOIN inbox_holds h ON (h.consumer_group, h.topic, h.key) = (p.consumer_group, p.topic, p.hold_key)`

// whereParked selects what a filter's args say, from parked_messages p.
const whereParked = `
		WHERE ($1 = '' OR p.consumer_group = $1)
		  AND ($2 = '' OR p.topic = $2)
		  AND ($3 = '' OR p.key = $3)
		  AND ($4 = '' OR p.type = $4)
		  AND ($5 = '' OR p.error_class = $5)
		  AND ($6 = '' OR p.fingerprint = $6)
		  AND ($7 = '' OR p.state = $7)
		  AND (cardinality($8::bigint[]) = 0 OR p.id = ANY($8::bigint[]))
		  AND p.id > $9`

func (f Filter) args() []any {
	return []any{f.Group, f.Topic, f.Key, f.Type, f.Class, f.Fingerprint, f.State, notNil(f.IDs), f.AfterID}
}

func scanParked(row pgx.CollectableRow) (Parked, error) {
	var p Parked
	var first, last, next *time.Time
	err := row.Scan(&p.ID, &p.Group, &p.Topic, &p.Partition, &p.Offset, &p.Key, &p.EventID, &p.Type, &p.State,
		&p.Attempts, &p.Class, &p.Error, &p.Fingerprint, &p.ParkedAt, &first, &last, &next, &p.Released)
	for from, to := range map[*time.Time]*time.Time{first: &p.FirstFailedAt, last: &p.LastFailedAt, next: &p.NextTryAt} {
		if from != nil {
			*to = *from
		}
	}
	return p, err
}

func notNil(ids []int64) []int64 {
	if ids == nil {
		return []int64{}
	}
	return ids
}
