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
	ParkedAt      time.Time
	FirstFailedAt time.Time // zero while waiting
	LastFailedAt  time.Time
	NextTryAt     time.Time // of the key; zero when the message waits for a person

	// Headers and Payload are filled by [ShowParked] only.
	Headers []Header
	Payload []byte
}

// Filter selects parked messages. Empty fields select everything.
type Filter struct {
	Group, Topic, Key string
	Type, Class       string
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
	rows, _ := pool.Query(ctx, selectParked+`
		WHERE ($1 = '' OR p.consumer_group = $1)
		  AND ($2 = '' OR p.topic = $2)
		  AND ($3 = '' OR p.key = $3)
		  AND ($4 = '' OR p.type = $4)
		  AND ($5 = '' OR p.error_class = $5)
		  AND ($6 = '' OR p.state = $6)
		  AND (cardinality($7::bigint[]) = 0 OR p.id = ANY($7::bigint[]))
		  AND p.id > $8
		ORDER BY p.id
		LIMIT $9`,
		f.Group, f.Topic, f.Key, f.Type, f.Class, f.State, notNil(f.IDs), f.AfterID, limit) // CollectRows reports the error
	parked, err := pgx.CollectRows(rows, scanParked)
	if err != nil {
		return nil, fmt.Errorf("list parked messages: %w", err)
	}
	return parked, nil
}

// ShowParked returns one parked message with its headers and payload, or [ErrNotFound].
func ShowParked(ctx context.Context, pool *pgxpool.Pool, id int64) (Parked, error) {
	rows, _ := pool.Query(ctx, selectParked+` WHERE p.id = $1`, id) // CollectExactlyOneRow reports the error
	p, err := pgx.CollectExactlyOneRow(rows, scanParked)
	if errors.Is(err, pgx.ErrNoRows) {
		return Parked{}, fmt.Errorf("%d: %w", id, ErrNotFound)
	}
	if err != nil {
		return Parked{}, fmt.Errorf("load parked message %d: %w", id, err)
	}
	var headers headerList
	err = pool.QueryRow(ctx, `SELECT headers, payload FROM parked_messages WHERE id = $1`, id).Scan(&headers, &p.Payload)
	if err != nil {
		return Parked{}, fmt.Errorf("load parked message %d: %w", id, err)
	}
	p.Headers = headers
	return p, nil
}

const selectParked = `
		SELECT p.id, p.consumer_group, p.topic, p.kafka_partition, p.kafka_offset, p.key, p.event_id, p.type, p.state,
		       p.attempts, coalesce(p.error_class, ''), coalesce(p.error, ''), p.parked_at,
		       p.first_failed_at, p.last_failed_at, CASE WHEN h.state = 'held' THEN h.next_at END
		FROM parked_messages p
		LEFT JOIN inbox_holds h ON (h.consumer_group, h.topic, h.key) = (p.consumer_group, p.topic, p.hold_key)`

func scanParked(row pgx.CollectableRow) (Parked, error) {
	var p Parked
	var first, last, next *time.Time
	err := row.Scan(&p.ID, &p.Group, &p.Topic, &p.Partition, &p.Offset, &p.Key, &p.EventID, &p.Type, &p.State,
		&p.Attempts, &p.Class, &p.Error, &p.ParkedAt, &first, &last, &next)
	for from, to := range map[*time.Time]*time.Time{first: &p.FirstFailedAt, last: &p.LastFailedAt, next: &p.NextTryAt} {
		if from != nil {
			*to = *from
		}
	}
	return p, err
}

// Replay hands the dead messages that f selects back to their consumers, which try them again in the order of their
// key. It returns how many. A message that fails again is dead again, its attempts counted on. by says who asked.
func Replay(ctx context.Context, pool *pgxpool.Pool, f Filter, by string) (int, error) {
	f.State, f.Limit = StateDead, 500
	replayed := 0
	for {
		page, err := ListParked(ctx, pool, f)
		if err != nil {
			return replayed, err
		}
		for _, p := range page {
			ok, err := replayOne(ctx, pool, p, by)
			if err != nil {
				return replayed, fmt.Errorf("replay parked message %d: %w", p.ID, err)
			}
			if ok {
				replayed++
			}
			f.AfterID = p.ID
		}
		if len(page) < f.Limit {
			return replayed, nil
		}
	}
}

// replayOne takes the locks in the drainer's order: the hold first, then its messages.
func replayOne(ctx context.Context, pool *pgxpool.Pool, p Parked, by string) (replayed bool, err error) {
	st := store{group: p.Group}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// A message whose key was released gets a hold again; the fenced drainer works it like any other.
		_, err := tx.Exec(ctx, `
			INSERT INTO inbox_holds (consumer_group, topic, key, state, parked, type, next_at)
			VALUES ($1, $2, $3, 'held', 0, $4, now())
			ON CONFLICT (consumer_group, topic, key) DO UPDATE SET lease_token = NULL`, p.Group, p.Topic, p.Key, p.Type)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			WITH replayed AS (
				UPDATE parked_messages p SET state = 'held', hold_key = p.key
				FROM parked_messages old
				WHERE p.id = $4 AND p.state = 'dead' AND old.id = p.id
				RETURNING old.hold_key
			)
			UPDATE inbox_holds h
			SET parked = h.parked + CASE WHEN r.hold_key IS NULL THEN 1 ELSE 0 END,
			    state = 'held', tries = 0, next_at = now(), leased_until = NULL
			FROM replayed r
			WHERE h.consumer_group = $1 AND h.topic = $2 AND h.key = $3`, p.Group, p.Topic, p.Key, p.ID)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 { // settled by somebody else since it was listed
			return st.advance(ctx, tx, p.Topic, p.Key, 0)
		}
		replayed = true
		return st.audit(ctx, tx, auditRow{action: "replay", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: p.ID, by: by})
	})
	return replayed, err
}

// DiscardParked gives a parked message up for good: it is never handled, and the next message of its key is tried. It
// returns [ErrNotFound] when the message is not parked, or not any more. Reason and by go into inbox_audit.
func DiscardParked(ctx context.Context, pool *pgxpool.Pool, id int64, reason, by string) error {
	if reason == "" {
		return errors.New("discarding a message needs a reason")
	}
	p, err := ShowParked(ctx, pool, id)
	if err != nil {
		return err
	}
	st := store{group: p.Group}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Taking the lease away makes a drainer that is at work on this key roll back.
		_, err := tx.Exec(ctx, `
			UPDATE inbox_holds SET lease_token = NULL, leased_until = NULL
			WHERE consumer_group = $1 AND topic = $2 AND key = $3`, p.Group, p.Topic, p.Key)
		if err != nil {
			return err
		}
		var held bool
		err = tx.QueryRow(ctx, `DELETE FROM parked_messages WHERE id = $1 RETURNING hold_key IS NOT NULL`, id).Scan(&held)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, `
			UPDATE processed_messages SET state = 'discarded'
			WHERE slot = $1 AND consumer_group = $2 AND event_id = $3`, slotOf(p.EventID), p.Group, p.EventID.String()); err != nil {
			return err
		}
		if held {
			if err := st.advance(ctx, tx, p.Topic, p.Key, 1); err != nil {
				return err
			}
		}
		return st.audit(ctx, tx, auditRow{action: "discard", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: id, reason: reason, by: by})
	})
	if err != nil {
		return fmt.Errorf("discard parked message %d: %w", id, err)
	}
	return nil
}

func notNil(ids []int64) []int64 {
	if ids == nil {
		return []int64{}
	}
	return ids
}
