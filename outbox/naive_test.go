package outbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// trial is a run of something naive under the eyes of the history.
type trial struct {
	t       *testing.T
	pool    *pgxpool.Pool
	history outboxtest.History
	broker  outboxtest.Broker
}

// begin opens a transaction that is rolled back at the end of the test if it is still open.
func (x *trial) begin() pgx.Tx {
	x.t.Helper()
	tx, err := x.pool.Begin(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(x.t.Context())) }) // fails if it has ended, as it should
	return tx
}

func (x *trial) write(tx pgx.Tx, key string) outbox.Message {
	x.t.Helper()
	m := message("orders", key, 1)
	m.ID = uuid.New()
	if err := (outbox.Writer{Schema: schema}).Write(x.t.Context(), tx, m); err != nil {
		x.t.Fatal(err)
	}
	x.history.Written(m)
	return m
}

func (x *trial) commit(tx pgx.Tx, m outbox.Message) {
	x.t.Helper()
	if err := tx.Commit(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
	x.history.Committed(m)
}

func (x *trial) exec(db querier, sql string, args ...any) {
	x.t.Helper()
	rows, _ := db.Query(x.t.Context(), sql, args...) // CollectRows reports the error
	if _, err := pgx.CollectRows(rows, pgx.RowToMap); err != nil {
		x.t.Fatalf("%s: %v", sql, err)
	}
}

// read runs a naive relay's query, which returns seq, id and key.
func (x *trial) read(db querier, sql string, args ...any) []outbox.Record {
	x.t.Helper()
	rows, _ := db.Query(x.t.Context(), sql, args...) // CollectRows reports the error
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (outbox.Record, error) {
		r := outbox.Record{Topic: "orders"}
		return r, row.Scan(&r.Seq, &r.ID, &r.Key)
	})
	if err != nil {
		x.t.Fatalf("%s: %v", sql, err)
	}
	return found
}

// publish reads and publishes what it finds as it comes. It returns the last seq.
func (x *trial) publish(db querier, sql string, args ...any) (last int64) {
	x.t.Helper()
	for _, r := range x.read(db, sql, args...) {
		x.broker.Publish(x.t.Context(), []outbox.Record{r})
		last = r.Seq
	}
	return last
}

// A checker that convicts nobody proves nothing: each of these is a relay or a writer that somebody has published.
func TestHistoryConvictsNaiveRelaysAndWriters(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		run  func(x *trial)
		want string
	}{
		{"a cursor over the sequence skips what commits late", sequenceCursor, "1 lost"},
		{"a cursor under xmin, ordered by transaction, reorders a key", xminCursor, "1 out of order"},
		{"three workers that skip locked rows reorder a key", skipLocked, "1 out of order"},
		{"a checkpoint before the ack loses what a crash left unsent", checkpointFirst, "1 lost"},
		{"checking a leaf before locking it loses what commits in between", checkThenTruncate, "1 lost"},
		{"a snapshot kept in memory over a crash hides the transactions that get the lost ids", memoryOverCrash, "1 lost"},
		{"a writer that inserts before it locks its key reorders it", insertThenLock, "1 out of order"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := &trial{t: t, pool: newOutbox(t).Pool}
			c.run(x)
			err := x.history.Judge(x.broker.Records()).Err()
			if err == nil || !strings.HasPrefix(err.Error(), "history: "+c.want+"\n") {
				t.Errorf("verdict is %v, want %s", err, c.want)
			}
		})
	}
}

func sequenceCursor(x *trial) {
	const next = `SELECT seq, id, key FROM orders.outbox WHERE seq > $1 ORDER BY seq`
	late, early := x.begin(), x.begin()
	first := x.write(late, "a")
	x.commit(early, x.write(early, "b"))
	last := x.publish(x.pool, next, 0)
	x.commit(late, first)
	x.publish(x.pool, next, last)
}

func xminCursor(x *trial) {
	early, quick := x.begin(), x.begin()
	x.exec(early, `SELECT pg_current_xact_id()::text`)
	x.commit(quick, x.write(quick, "a"))
	x.commit(early, x.write(early, "a"))
	eventually(x.t, func() error { // it also waits for every other test's transactions: one server has one xmin
		var passed bool
		err := x.pool.QueryRow(x.t.Context(), `
			SELECT max(txid) < pg_snapshot_xmin(pg_current_snapshot()) FROM orders.outbox`).Scan(&passed)
		if err == nil && !passed {
			err = errors.New("xmin has not passed the messages")
		}
		return err
	})
	x.publish(x.pool, `
		SELECT seq, id, key FROM orders.outbox
		WHERE txid < pg_snapshot_xmin(pg_current_snapshot())
		ORDER BY txid, seq`)
}

func skipLocked(x *trial) {
	for range 3 {
		tx := x.begin()
		x.commit(tx, x.write(tx, "a"))
	}
	// All three have taken one message before the first of them has published its own.
	var taken [3][]outbox.Record
	for worker := range taken {
		taken[worker] = x.read(x.begin(), `
			SELECT seq, id, key FROM orders.outbox ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED`)
	}
	for _, worker := range []int{1, 2, 0} {
		x.broker.Publish(x.t.Context(), taken[worker])
	}
}

func checkpointFirst(x *trial) {
	tx := x.begin()
	x.commit(tx, x.write(tx, "a"))
	x.exec(x.pool, `CREATE TABLE orders.checkpoint AS SELECT 0::bigint AS seq`)
	const next = `
		SELECT seq, id, key FROM orders.outbox
		WHERE seq > (SELECT c.seq FROM orders.checkpoint c)
		ORDER BY seq`
	page := x.read(x.pool, next)
	x.exec(x.pool, `UPDATE orders.checkpoint SET seq = $1`, page[len(page)-1].Seq)
	// Killed before it could send the page, it starts again.
	x.publish(x.pool, next)
}

// memoryOverCrash is the snapshot diff without its caution: as [outbox.Relay] polls, but sure that the server behind its
// pool is still the one that it took the snapshot from.
func memoryOverCrash(x *trial) {
	behind := &front{server: newServer(x.t)}
	behind.server.migrate(x.t)
	x.pool = behind.pool(x.t, behind.server.URL("postgres"))
	behind.server.stopWALWriter(x.t, x.pool)
	burn(x.t, x.pool, 300) // ids that no record of the WAL mentions
	var prev string
	if err := x.pool.QueryRow(x.t.Context(), `SELECT pg_current_snapshot()::text`).Scan(&prev); err != nil {
		x.t.Fatal(err)
	}
	behind.change(crashed(x.t, behind))
	tx := x.begin()
	x.commit(tx, x.write(tx, "a"))
	x.publish(x.pool, `
		SELECT seq, id, key FROM orders.outbox
		WHERE txid >= pg_snapshot_xmax($1::text::pg_snapshot)
			OR txid IN (SELECT pg_snapshot_xip($1::text::pg_snapshot))
		ORDER BY seq`, prev)
}

func checkThenTruncate(x *trial) {
	var used bool
	if err := x.pool.QueryRow(x.t.Context(), `SELECT EXISTS (SELECT FROM orders.outbox)`).Scan(&used); err != nil || used {
		x.t.Fatalf("the ring is in use: %v %v", used, err)
	}
	tx := x.begin()
	x.commit(tx, x.write(tx, "a"))
	x.exec(x.pool, `TRUNCATE orders.outbox`)
	x.publish(x.pool, `SELECT seq, id, key FROM orders.outbox ORDER BY seq`)
}

func insertThenLock(x *trial) {
	const lock = `SELECT pg_advisory_xact_lock(hashtext('a'))::text`
	insert := func(tx pgx.Tx) outbox.Message {
		m := message("orders", "a", 1)
		m.ID = uuid.New()
		if err := (outbox.Writer{Schema: schema, NoKeyLock: true}).Write(x.t.Context(), tx, m); err != nil {
			x.t.Fatal(err)
		}
		return m
	}
	slow, fast := x.begin(), x.begin()
	first, second := insert(slow), insert(fast)
	x.exec(fast, lock)
	x.history.Written(second)
	x.commit(fast, second)
	x.exec(slow, lock)
	x.history.Written(first)
	x.commit(slow, first)
	x.publish(x.pool, `SELECT seq, id, key FROM orders.outbox ORDER BY seq`)
}
