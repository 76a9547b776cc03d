package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/propagation"
)

// Write adds msgs to the outbox of tx's search_path. They are published, in this order, if and only if tx commits. It
// is Writer{}.Write.
//
// Write locks the key of every message until tx ends, so transactions that write the same key commit one after the
// other. Give all messages of a transaction to one Write: it locks their keys in one order for everybody, where several
// Writes in one transaction can meet another's in a deadlock (SQLSTATE 40P01), which Postgres ends by failing one.
//
// A message that cannot be published fails the Write, with [ErrTooLarge] when it is too large, and nothing is written.
func Write(ctx context.Context, tx pgx.Tx, msgs ...Message) error {
	return Writer{}.Write(ctx, tx, msgs...)
}

// Writer is [Write] with settings. The zero value is ready.
type Writer struct {
	// Schema holds the outbox. Default: the first on the search_path that has one.
	Schema string
	// NoKeyLock leaves out the lock on the keys. Set it only if every transaction that writes a key already holds
	// another lock on that key's behalf, such as the user's row, from before its Write until it ends. Without either,
	// messages of a key may overtake each other.
	NoKeyLock bool
	// MaxBytes is the most that one record may take with key and headers. It must not exceed the topics'
	// max.message.bytes. Default [DefaultMaxBytes].
	MaxBytes int
}

// Write is [Write] under w's settings.
func (w Writer) Write(ctx context.Context, tx pgx.Tx, msgs ...Message) error {
	if len(msgs) == 0 {
		return nil
	}
	rows, err := w.encode(ctx, msgs)
	if err != nil {
		return fmt.Errorf("write to outbox: %w", err)
	}
	sql, args := w.insert(), []any{
		rows.ids, rows.topics, rows.keys, rows.types, rows.contentTypes, rows.headers, rows.payloads,
	}
	if len(msgs) == 1 {
		sql, args = w.insertOne(), []any{
			rows.ids[0], rows.topics[0], rows.keys[0], rows.types[0], rows.contentTypes[0], rows.headers[0], rows.payloads[0],
		}
	}
	if _, err := tx.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("write to outbox: %w", err)
	}
	return nil
}

// insertOne is insert for one message, which most Writes have: a tenth of a small transaction faster.
func (w Writer) insertOne() string {
	table := qualified(w.Schema, "outbox")
	if w.NoKeyLock {
		return `
		INSERT INTO ` + table + ` (id, topic, key, type, content_type, headers, payload)
		VALUES ($1::text::uuid, $2, $3, $4, $5, $6::text::jsonb, $7)`
	}
	return `
		WITH locked AS MATERIALIZED (
			SELECT pg_advisory_xact_lock(hashtextextended($3::text, '` + table + `'::regclass::oid::bigint))
		)
		INSERT INTO ` + table + ` (id, topic, key, type, content_type, headers, payload)
		SELECT $1::text::uuid, $2, $3::text, $4, $5, $6::text::jsonb, $7
		FROM locked`
}

// insert returns the statement that locks the keys and inserts the messages.
//
// The lock and the row must be one statement: a key locked in a statement of its own costs a round trip. The aggregate
// over the materialized CTE makes every lock be held before the first row gets its sequence number, and the sorted
// hashes make writers of several keys queue instead of deadlock.
func (w Writer) insert() string {
	table := qualified(w.Schema, "outbox")
	if w.NoKeyLock {
		return `
		INSERT INTO ` + table + ` (id, topic, key, type, content_type, headers, payload)
		SELECT id::uuid, topic, key, type, content_type, headers::jsonb, payload
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[])
			WITH ORDINALITY AS m (id, topic, key, type, content_type, headers, payload, n)
		ORDER BY n`
	}
	return `
		WITH locked AS MATERIALIZED (
			SELECT pg_advisory_xact_lock(hash)
			FROM (
				SELECT DISTINCT hashtextextended(key, '` + table + `'::regclass::oid::bigint) AS hash
				FROM unnest($3::text[]) AS key
				ORDER BY hash
			) AS hashes
		)
		INSERT INTO ` + table + ` (id, topic, key, type, content_type, headers, payload)
		SELECT id::uuid, topic, key, type, content_type, headers::jsonb, payload
		FROM (SELECT count(*) AS keys FROM locked) AS l
		CROSS JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[])
			WITH ORDINALITY AS m (id, topic, key, type, content_type, headers, payload, n)
		WHERE l.keys > 0
		ORDER BY n`
}

// columns are messages turned by a quarter: one array for each column, so that many messages are one round trip.
type columns struct {
	ids, topics, keys, types, contentTypes, headers []string
	payloads                                        [][]byte
}

func (w Writer) encode(ctx context.Context, msgs []Message) (columns, error) {
	limit := w.MaxBytes
	if limit == 0 {
		limit = DefaultMaxBytes
	}
	trace := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	var c columns
	for i := range msgs {
		m := &msgs[i]
		if err := m.check(limit); err != nil {
			return columns{}, fmt.Errorf("message %d of %d: %w", i+1, len(msgs), err)
		}
		id, err := messageID(m.ID)
		if err != nil {
			return columns{}, err
		}
		headers, err := storedHeaders(m, trace)
		if err != nil {
			return columns{}, err
		}
		contentType, payload := m.ContentType, m.Payload
		if contentType == "" {
			contentType = "application/json"
		}
		if payload == nil {
			payload = []byte{} // nil would be NULL, which is a tombstone in Kafka and nothing here
		}
		c.ids = append(c.ids, id.String())
		c.topics = append(c.topics, m.Topic)
		c.keys = append(c.keys, m.Key)
		c.types = append(c.types, m.Type)
		c.contentTypes = append(c.contentTypes, contentType)
		c.headers = append(c.headers, headers)
		c.payloads = append(c.payloads, payload)
	}
	return c, nil
}

func messageID(id uuid.UUID) (uuid.UUID, error) {
	if id != uuid.Nil {
		return id, nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, fmt.Errorf("mint message id: %w", err)
	}
	return id, nil
}

// storedHeaders is the JSON object of the headers column: m's own headers, its subject, and the trace it belongs to.
func storedHeaders(m *Message, trace propagation.MapCarrier) (string, error) {
	if len(m.Headers) == 0 && m.Subject == "" && len(trace) == 0 {
		return "{}", nil
	}
	all := make(map[string]string, len(m.Headers)+len(trace)+1)
	maps.Copy(all, trace)
	maps.Copy(all, m.Headers)
	if m.Subject != "" {
		all[headerSubject] = m.Subject
	}
	encoded, err := json.Marshal(all)
	if err != nil {
		return "", fmt.Errorf("encode headers: %w", err)
	}
	return string(encoded), nil
}

// qualified is name in schema, quoted; without a schema the search_path finds it.
func qualified(schema, name string) string {
	if schema == "" {
		return name
	}
	return pgx.Identifier{schema, name}.Sanitize()
}
