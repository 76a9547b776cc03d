package inbox

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/outbox"
)

// store is the SQL of one consumer group. Its statements follow the lock protocol: dedup, then holds, then the rest,
// each a statement of its own, because in READ COMMITTED only a new statement sees what the lock before it waited for.
//
// Ids travel as text and are cast: that works in every mode of pgx, also behind a pooler.
type store struct {
	schema   string // quoted, with its dot; or "": the search_path decides
	group    string
	dlqTopic string
	outbox   outbox.Writer
	lease    time.Duration
}

func schemaPrefix(schema string) string {
	if schema == "" {
		return ""
	}
	return pgx.Identifier{schema}.Sanitize() + "."
}

// sql puts the schema before the table names of q, which are written {processed_messages}.
func (s store) sql(q string) string {
	return strings.NewReplacer("{", s.schema, "}", "").Replace(q)
}

// idColumns are the dedup rows of items, turned into columns.
func idColumns(items []*item) (slots []int16, ids []string, hashes [][]byte) {
	for _, it := range items {
		slots = append(slots, slotOf(it.dedupID))
		ids = append(ids, it.dedupID.String())
		hashes = append(hashes, it.hash)
	}
	return slots, ids, hashes
}

// remember inserts the dedup rows of items, as done, and returns the ids that were not there before.
func (s store) remember(ctx context.Context, tx pgx.Tx, items []*item) (map[uuid.UUID]bool, error) {
	slots, ids, hashes := idColumns(items)
	// Sorted ids: two owners of one partition that insert the same ids in different orders would deadlock.
	rows, _ := tx.Query(ctx, s.sql(`
		INSERT INTO {processed_messages} (slot, consumer_group, event_id, payload_hash, state)
		SELECT m.slot, $1, m.event_id::uuid, m.payload_hash, 'done'
		FROM unnest($2::smallint[], $3::text[], $4::bytea[]) AS m (slot, event_id, payload_hash)
		ORDER BY m.event_id
		ON CONFLICT DO NOTHING
		RETURNING event_id`), s.group, slots, ids, hashes) // CollectRows reports the error
	inserted, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("insert processed messages: %w", err)
	}
	fresh := make(map[uuid.UUID]bool, len(inserted))
	for _, id := range inserted {
		fresh[id] = true
	}
	return fresh, nil
}

// isRing reports whether processed_messages is partitioned.
func (s store) isRing(ctx context.Context, tx pgx.Tx) (ring bool, err error) {
	err = tx.QueryRow(ctx, `SELECT relkind = 'p' FROM pg_class WHERE oid = $1::text::regclass`, s.sql(`{processed_messages}`)).Scan(&ring)
	if err != nil {
		return false, fmt.Errorf("look at processed_messages: %w", err)
	}
	return ring, nil
}

// hashes returns the remembered payload hashes of items.
func (s store) hashes(ctx context.Context, tx pgx.Tx, items []*item) (map[uuid.UUID]string, error) {
	slots, ids, _ := idColumns(items)
	rows, _ := tx.Query(ctx, s.sql(`
		SELECT p.event_id, p.payload_hash
		FROM unnest($2::smallint[], $3::text[]) AS m (slot, event_id)
		JOIN {processed_messages} p ON (p.consumer_group, p.event_id, p.slot) = ($1, m.event_id::uuid, m.slot)`),
		s.group, slots, ids) // ForEachRow reports the error
	found := make(map[uuid.UUID]string, len(items))
	var id uuid.UUID
	var hash []byte
	_, err := pgx.ForEachRow(rows, []any{&id, &hash}, func() error { found[id] = string(hash); return nil })
	if err != nil {
		return nil, fmt.Errorf("read payload hashes: %w", err)
	}
	return found, nil
}

// parkedAlready returns which of the items are parked. Only ids beyond the horizon need it: their rows in
// processed_messages may be gone.
func (s store) parkedAlready(ctx context.Context, tx pgx.Tx, items []*item) (map[uuid.UUID]bool, error) {
	_, ids, _ := idColumns(items)
	rows, _ := tx.Query(ctx, s.sql(`
		SELECT event_id FROM {parked_messages}
		WHERE consumer_group = $1 AND event_id = ANY($2::text[]::uuid[])`), s.group, ids) // CollectRows reports the error
	found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("look for parked messages: %w", err)
	}
	parked := make(map[uuid.UUID]bool, len(found))
	for _, id := range found {
		parked[id] = true
	}
	return parked, nil
}

// heldKeys returns which of keys are held, and keeps a drainer from finishing those holds before tx ends. It must be a
// statement of its own after remember.
func (s store) heldKeys(ctx context.Context, tx pgx.Tx, topic string, keys []string) (map[string]bool, error) {
	rows, _ := tx.Query(ctx, s.sql(`
		SELECT key FROM {inbox_holds}
		WHERE consumer_group = $1 AND topic = $2 AND key = ANY($3::text[])
		ORDER BY key
		FOR KEY SHARE`), s.group, topic, keys) // CollectRows reports the error
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for holds: %w", err)
	}
	held := make(map[string]bool, len(found))
	for _, key := range found {
		held[key] = true
	}
	return held, nil
}

// forget takes back the dedup rows of messages that wait in memory for another try.
func (s store) forget(ctx context.Context, tx pgx.Tx, items []*item) error {
	slots, ids, _ := idColumns(items)
	_, err := tx.Exec(ctx, s.sql(`
		DELETE FROM {processed_messages} p
		USING unnest($2::smallint[], $3::text[]) AS m (slot, event_id)
		WHERE (p.consumer_group, p.event_id, p.slot) = ($1, m.event_id::uuid, m.slot)`), s.group, slots, ids)
	if err != nil {
		return fmt.Errorf("take back processed messages: %w", err)
	}
	return nil
}

// settle sets the state of messages that remember inserted as done. No row is fine: it is past the horizon.
func (s store) settle(ctx context.Context, tx pgx.Tx, items []*item, state string) error {
	slots, ids, _ := idColumns(items)
	_, err := tx.Exec(ctx, s.sql(`
		UPDATE {processed_messages} p SET state = $4, processed_at = clock_timestamp()
		FROM unnest($2::smallint[], $3::text[]) AS m (slot, event_id)
		WHERE (p.consumer_group, p.event_id, p.slot) = ($1, m.event_id::uuid, m.slot)`), s.group, slots, ids, state)
	if err != nil {
		return fmt.Errorf("set processed messages %s: %w", state, err)
	}
	return nil
}

// parking is a message on its way into parked_messages.
type parking struct {
	item    *item
	state   string // waiting, held, dead
	failure failure
	nextTry time.Duration
	release bool // dead, and its key goes on
}

// park appends messages to the lines of their keys, in the order given. The upsert comes first: its row lock is what
// orders the ids of a line, and what a drainer that is about to drop the hold waits for.
func (s store) park(ctx context.Context, tx pgx.Tx, parkings []parking) error {
	var b pgx.Batch
	for _, p := range parkings {
		it := p.item
		var hold *string
		if !p.release {
			hold = &it.key
			holdState := StateHeld
			if p.state == StateDead {
				holdState = StateDead
			}
			b.Queue(s.sql(`
				INSERT INTO {inbox_holds} (consumer_group, topic, key, state, parked, type, error_class, fingerprint, next_at)
				VALUES ($1, $2, $3, $4, 1, $5, $6, $7, now() + $8 * interval '1 millisecond')
				ON CONFLICT (consumer_group, topic, key) DO UPDATE SET parked = inbox_holds.parked + 1`),
				s.group, it.msg.Topic, it.key, holdState, text(it.msg.Type), p.failure.class, p.failure.fingerprint, p.nextTry.Milliseconds())
		}
		headers, err := json.Marshal(headerList(it.msg.Headers))
		if err != nil {
			return fmt.Errorf("encode headers: %w", err)
		}
		b.Queue(s.sql(`
			INSERT INTO {parked_messages} (consumer_group, topic, key, hold_key, kafka_partition, kafka_offset, event_id, type,
			                               record_key, record_time, headers, payload, state, attempts, error_class, error,
			                               fingerprint, first_failed_at, last_failed_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7::text::uuid, $8, $9, $10, $11::text::jsonb, $12, $13, $14, nullif($15, ''),
			        nullif($16, ''), nullif($17, ''), $18, $19)`),
			s.group, it.msg.Topic, it.key, hold, it.msg.Partition, it.msg.Offset, it.dedupID.String(), text(it.msg.Type),
			it.recordKey, storableTime(it.recordTime), string(headers), it.msg.Payload, p.state, p.failure.attempts, p.failure.class, p.failure.text,
			p.failure.fingerprint, orNil(p.failure.first), orNil(p.failure.last))
	}
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("park messages: %w", err)
	}
	return nil
}

// auditRow is what somebody did to a message instead of applying it.
type auditRow struct {
	action, topic, key, reason, by string
	eventID                        uuid.UUID
	parkedID                       int64
}

func (s store) audit(ctx context.Context, tx pgx.Tx, a auditRow) error {
	_, err := tx.Exec(ctx, s.sql(`
		INSERT INTO {inbox_audit} (action, consumer_group, topic, key, event_id, parked_id, reason, by)
		VALUES ($1, $2, $3, $4, $5::text::uuid, nullif($6, 0), $7, $8)`),
		a.action, s.group, a.topic, a.key, a.eventID.String(), a.parkedID, text(a.reason), text(a.by))
	if err != nil {
		return fmt.Errorf("insert audit row: %w", err)
	}
	return nil
}

// headerList is how headers are stored: an array of {"key","value"}, {"key","base64"} for values that are not text, or {"key"}
// for null.
type headerList []Header

type storedHeader struct {
	Key    string  `json:"key"`
	Value  *string `json:"value,omitempty"`
	Base64 *string `json:"base64,omitempty"`
}

func (l headerList) MarshalJSON() ([]byte, error) {
	stored := make([]storedHeader, len(l))
	for i, h := range l {
		stored[i].Key = text(h.Key)
		if h.Value == nil {
			continue
		}
		if value := string(h.Value); storable(value) {
			stored[i].Value = &value
		} else {
			encoded := base64.StdEncoding.EncodeToString(h.Value)
			stored[i].Base64 = &encoded
		}
	}
	return json.Marshal(stored)
}

func (l *headerList) UnmarshalJSON(data []byte) error {
	var stored []storedHeader
	if err := json.Unmarshal(data, &stored); err != nil {
		return err
	}
	*l = make(headerList, len(stored))
	for i, h := range stored {
		(*l)[i].Key = h.Key
		switch {
		case h.Value != nil:
			(*l)[i].Value = []byte(*h.Value)
		case h.Base64 != nil:
			value, err := base64.StdEncoding.DecodeString(*h.Base64)
			if err != nil {
				return err
			}
			(*l)[i].Value = value
		}
	}
	return nil
}

// storable reports whether Postgres takes s as text.
func storable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// text makes s storable, and at most 2000 bytes.
func text(s string) string {
	if len(s) > 2000 {
		s = s[:2000]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
}

// storableTime moves an absurd timestamp into what Postgres can store.
func storableTime(t time.Time) time.Time {
	if t.Year() < 1 || t.Year() > 9999 {
		return time.Unix(0, 0)
	}
	return t
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
