package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/trace"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func TestWriteRefusesWhatCouldNotBePublished(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	good := func(change func(*outbox.Message)) outbox.Message {
		m := message("orders", "a", 1)
		change(&m)
		return m
	}
	header := func(name, value string) outbox.Message {
		return good(func(m *outbox.Message) { m.Headers = map[string]string{name: value} })
	}
	topic := func(name string) outbox.Message { return good(func(m *outbox.Message) { m.Topic = name }) }
	cases := []struct {
		name string
		msg  outbox.Message
		want string
	}{
		{"a message without a topic has nowhere to go", topic(""), "topic is missing"},
		{"a topic with a space is no topic name", topic("my orders"), `contains ' '`},
		{"a topic of 250 letters is no topic name", topic(strings.Repeat("x", 250)), "not a topic name"},
		{"without a key there is no order to keep", good(func(m *outbox.Message) { m.Key = "" }), "key is missing"},
		{"a key that no index takes", good(func(m *outbox.Message) { m.Key = strings.Repeat("x", 1025) }), "key of 1025 bytes, limit 1024"},
		{"a reader dispatches by type", good(func(m *outbox.Message) { m.Type = "" }), "type is missing"},
		{"Postgres stores no NUL", good(func(m *outbox.Message) { m.Key = "a\x00b" }), "key is not valid UTF-8 without NUL"},
		{"Postgres stores no broken UTF-8", good(func(m *outbox.Message) { m.Subject = "\xff" }), "subject is not valid UTF-8"},
		{"a header may not pose as a CloudEvents attribute", header("CE_ID", "x"), `"CE_ID" is set by the relay`},
		{"a header may not pose as the sequence number", header("outbox-seq", "1"), "is set by the relay"},
		{"a header name with a line break", header("a\r\nb", "x"), "visible ASCII"},
		{"a header without a name", header("", "x"), "no name"},
		{"a header value that Postgres cannot store", header("a", "\x00"), "not valid UTF-8 without NUL"},
		{"a record above the limit names the limit", good(func(m *outbox.Message) { m.Payload = make([]byte, 2000) }), "limit 2000"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
				return outbox.Writer{Schema: schema, MaxBytes: 2000}.Write(t.Context(), tx, message("orders", "a", 1), c.msg)
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "message 2 of 2") {
				t.Errorf("Write(%s) = %v, want an error about message 2 with %q", c.name, err, c.want)
			}
			if tooLarge := strings.HasPrefix(c.want, "limit"); errors.Is(err, outbox.ErrTooLarge) != tooLarge {
				t.Errorf("errors.Is(%v, ErrTooLarge) = %v, want %v", err, !tooLarge, tooLarge)
			}
		})
	}
	var rows int
	if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM orders.outbox`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows in the outbox (%v), want none: a refused Write writes nothing", rows, err)
	}
}

func TestRecordCarriesTheMessageAsACloudEvent(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	id := uuid.Must(uuid.NewV7())
	spanned := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	}))
	err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
		return outbox.Writer{Schema: schema}.Write(spanned, tx, outbox.Message{
			ID: id, Topic: "orders", Key: "ä", Type: "order.placed.v1", Subject: "o-1",
			Headers:     map[string]string{"tenant": `a "quoted" one`},
			ContentType: "application/octet-stream", Payload: []byte("\x00\xff"),
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	start(t, db.Pool, broker, outbox.RelayOptions{Source: "/shop"})
	record := waitFor(t, broker, 1)[0]
	want := map[string]string{
		"ce_specversion": "1.0", "ce_id": id.String(), "ce_type": "order.placed.v1", "ce_source": "/shop",
		"ce_subject": "o-1", "content-type": "application/octet-stream", "tenant": `a "quoted" one`, "outbox-seq": "1",
		"traceparent": "00-01000000000000000000000000000000-0200000000000000-01",
	}
	for _, h := range record.Headers {
		if value, listed := want[h.Key]; listed && value != string(h.Value) {
			t.Errorf("header %s is %q, want %q", h.Key, h.Value, value)
		}
		delete(want, h.Key)
	}
	if len(want) != 0 {
		t.Errorf("headers are missing: %v", want)
	}
	if record.Topic != "orders" || record.Key != "ä" || string(record.Value) != "\x00\xff" || record.ID != id {
		t.Errorf("record is %s %s %q, want the message's topic, key and bytes", record.Topic, record.Key, record.Value)
	}
}

func TestWriteHoldsTheKeyUntilCommit(t *testing.T) {
	t.Parallel()
	one, two := []outbox.Message{message("orders", "a", 2)}, []outbox.Message{message("orders", "a", 2), message("orders", "c", 2)}
	for _, tt := range []struct {
		name   string
		holds  outbox.Message
		writes []outbox.Message
	}{
		{"one message waits", message("orders", "a", 1), one},
		{"one of several messages waits", message("orders", "a", 1), two},
		{"whatever the topic", message("shipments", "a", 1), one},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			keyIsHeld(t, tt.holds, tt.writes)
		})
	}
}

// keyIsHeld checks that a transaction with later waits for one with earlier, which has its key.
func keyIsHeld(t *testing.T, earlier outbox.Message, later []outbox.Message) {
	db := newOutbox(t)
	first, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := outbox.Writer{Schema: schema}
	if err := w.Write(t.Context(), first, earlier); err != nil {
		t.Fatal(err)
	}
	write(t, db.Pool, message("orders", "b", 1)) // another key goes ahead
	second := make(chan error, 1)
	go func() {
		second <- pgx.BeginFunc(context.WithoutCancel(t.Context()), db.Pool, func(tx pgx.Tx) error {
			return w.Write(t.Context(), tx, later...)
		})
	}()
	eventually(t, func() error {
		var waiting int
		if err := db.Pool.QueryRow(t.Context(), `
			SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting); err != nil {
			return err
		}
		if waiting != 1 {
			return errors.New("the second writer of the key does not wait for the first")
		}
		return nil
	})
	write(t, db.Pool, message("orders", "b", 2)) // takes a number while the other one waits
	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	var inOrder bool
	err = db.Pool.QueryRow(t.Context(), `
		SELECT (SELECT seq FROM orders.outbox WHERE key = 'b' AND payload = '{"n":2}')
			< (SELECT seq FROM orders.outbox WHERE key = 'a' AND payload = '{"n":2}')`).Scan(&inOrder)
	if err != nil || !inOrder {
		t.Errorf("the message that waited has the smaller seq (%v): it took its number before it had the key", err)
	}
}

func TestWritersOfManyKeysDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	keys := []string{"a", "b", "c", "d"}
	errs := make(chan error, 4)
	for i := range cap(errs) {
		go func() {
			var err error
			for n := 0; n < 50 && err == nil; n++ {
				err = pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
					var batch []outbox.Message
					for k := range keys {
						batch = append(batch, message("orders", keys[(k+i+n)%len(keys)], n))
					}
					return outbox.Writer{Schema: schema}.Write(t.Context(), tx, batch...)
				})
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("a writer of four keys in its own order failed: %v", err)
		}
	}
}

func TestWriteIsOneStatementHoweverManyMessages(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	var statements []string
	pool := tracedPool(t, db, traced{begins: func(sql string) { statements = append(statements, sql) }})
	var batch []outbox.Message
	for n := range 100 {
		batch = append(batch, message("orders", fmt.Sprint("user-", n%10), n))
	}
	for rows, batch := range map[int][]outbox.Message{1: batch[:1], 100: batch} {
		statements = nil
		write(t, pool, batch...)
		if len(statements) != 3 || !strings.Contains(statements[1], "pg_advisory_xact_lock") ||
			!strings.Contains(statements[1], "INSERT") {
			t.Errorf("Write of %d messages in a transaction is %d statements, want begin, one with lock and INSERT, commit:\n%s",
				rows, len(statements), strings.Join(statements, "\n"))
		}
	}
	var rows int
	if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM orders.outbox`).Scan(&rows); err != nil || rows != 101 {
		t.Errorf("%d rows (%v), want 101", rows, err)
	}
}

// Writers with crossed keys deadlock unless everybody locks them in one order, which is not the order of the messages.
func TestWriteLocksItsKeysInOneOrder(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	var batch []outbox.Message
	var keys []string
	for n := range 40 {
		keys = append(keys, fmt.Sprint("user-", n))
		batch = append(batch, message("orders", keys[n], 0))
	}
	rows, _ := db.Pool.Query(t.Context(), `
		SELECT hashtextextended(key, 'orders.outbox'::regclass::oid::bigint) AS hash
		FROM unnest($1::text[]) AS key
		ORDER BY hash`, keys)
	hashes, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	const taken = 17
	other, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, hashes[taken]); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		written <- pgx.BeginFunc(context.WithoutCancel(t.Context()), db.Pool, func(tx pgx.Tx) error {
			return outbox.Writer{Schema: schema}.Write(t.Context(), tx, batch...)
		})
	}()
	var held []int64
	eventually(t, func() error {
		rows, _ := db.Pool.Query(t.Context(), `
			SELECT (l.classid::bigint << 32) | l.objid::bigint AS hash
			FROM pg_locks w
			JOIN pg_locks l ON l.pid = w.pid AND l.locktype = 'advisory' AND l.granted
			WHERE w.locktype = 'advisory' AND NOT w.granted
				AND w.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			ORDER BY hash`)
		var err error
		if held, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err == nil && len(held) == 0 {
			err = errors.New("the writer does not wait for the key that is taken, with others that it holds")
		}
		return err
	})
	if !slices.Equal(held, hashes[:taken]) {
		t.Errorf("a writer that waits for key %d of 40 holds %d locks, want those before it", taken, len(held))
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

func TestWriterRoleMayOnlyInsertMessages(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	writer, relay := createRole(t, db, "writer"), createRole(t, db, "relay")
	if _, err := db.Pool.Exec(t.Context(), `SELECT orders.outbox_grant($1, $2)`, writer.role, relay.role); err != nil {
		t.Fatal(err)
	}
	write(t, writer.pool, message("orders", "a", 1))
	const insert = `(id, topic, key, type, content_type, payload) VALUES (gen_random_uuid(), 't', 'k', 't', 'c', '')`
	and := func(column, value string) string {
		return strings.Replace(strings.Replace(insert, "(id", "("+column+", id", 1), "VALUES (", "VALUES ("+value+", ", 1)
	}
	for _, forbidden := range []string{
		`SELECT * FROM orders.outbox`,
		`DELETE FROM orders.outbox`,
		`UPDATE orders.outbox SET payload = ''`,
		`TRUNCATE orders.outbox`,
		`INSERT INTO orders.outbox ` + and("txid", "'3'"),
		`INSERT INTO orders.outbox ` + and("slot", "1"),
		`INSERT INTO orders.outbox ` + strings.Replace(and("seq", "1"), "VALUES", "OVERRIDING SYSTEM VALUE VALUES", 1),
		`INSERT INTO orders.outbox_1 ` + insert,
		`SELECT * FROM orders.outbox_poll('3:3:')`,
		`UPDATE orders.outbox_lease SET epoch = 0`,
		`INSERT INTO orders.outbox ` + and("created_at", "now()"),
		`INSERT INTO orders.outbox ` + insert + ` RETURNING seq`,
		`DELETE FROM orders.outbox_1`,
		`TRUNCATE orders.outbox_1`,
		`UPDATE orders.outbox SET txid = '3'`,
		`DO $$ BEGIN LOCK TABLE orders.outbox IN ACCESS EXCLUSIVE MODE; END $$`,
		`SELECT nextval('orders.outbox_seq_seq')`,
		`SELECT setval('orders.outbox_seq_seq', 1)`,
		`SELECT orders.outbox_grant(NULL, current_user)`,
	} {
		_, err := writer.pool.Exec(t.Context(), forbidden)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("the writer's role runs %s: %v, want it refused", forbidden, err)
		}
	}
	// The relay's role can do all a relay does.
	start(t, relay.pool, broker, outbox.RelayOptions{})
	waitFor(t, broker, 1)
}
