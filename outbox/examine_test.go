package outbox_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// examined is an outbox with a writer's and a relay's role and a relay that leads: one in which all is well.
type examined struct {
	*pgtest.DB
	writer roleDB
	reader string // the relay's role
	broker *outboxtest.Broker
	relay  *outbox.Relay
	stop   func()
}

func newExamined(t *testing.T) *examined {
	t.Helper()
	db := newOutbox(t)
	e := &examined{DB: db, writer: createRole(t, db, "writer"), broker: &outboxtest.Broker{}}
	relay := createRole(t, db, "relay")
	e.reader = relay.role
	e.exec(t, `SELECT orders.outbox_grant($1, $2)`, e.writer.role, relay.role)
	e.relay, e.stop = start(t, relay.pool, e.broker, outbox.RelayOptions{}, often)
	write(t, e.writer.pool, message("orders", "a", 1))
	waitFor(t, e.broker, 1)
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) })
	return e
}

func (e *examined) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := e.Pool.Exec(context.WithoutCancel(t.Context()), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func examine(t *testing.T, pool *pgxpool.Pool, opts outbox.ExamineOptions) []outbox.Finding {
	t.Helper()
	findings, err := outbox.Examine(t.Context(), pool, schema, opts)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

// complaint returns the one finding of a check that is not ok.
func complaint(findings []outbox.Finding, check string) (outbox.Finding, error) {
	var bad []outbox.Finding
	for _, f := range findings {
		if f.Check == check && f.Level != outbox.OK {
			bad = append(bad, f)
		}
	}
	if len(bad) != 1 {
		return outbox.Finding{}, fmt.Errorf("%d complaints about %s, want 1: %+v", len(bad), check, findings)
	}
	return bad[0], nil
}

func TestExamineFindsNothingWhereAllIsWell(t *testing.T) {
	t.Parallel()
	e := newExamined(t)
	var checks []string
	for _, f := range examine(t, e.Pool, outbox.ExamineOptions{}) {
		if f.Level != outbox.OK || f.What == "" || f.Why != "" || f.Next != "" {
			t.Errorf("finding %+v, want ok with nothing to do", f)
		}
		checks = append(checks, f.Check)
	}
	want := "primary identity sequence sequence cache leader backlog parked keys order ring transactions prepared transactions commits grants"
	if got := strings.Join(checks, " "); got != want {
		t.Errorf("checks %s, want %s", got, want)
	}
}

func TestExamineNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	noPatience := outbox.ExamineOptions{MaxTransaction: time.Nanosecond, MaxAge: time.Nanosecond}
	for _, tc := range []struct {
		name  string
		cause func(t *testing.T, e *examined)
		check string
		level string
		// what, why and what next, in parts; WRITER is the writer's role
		says []string
		opts outbox.ExamineOptions
	}{
		{
			name:  "a sequence with a cache",
			cause: func(t *testing.T, e *examined) { e.exec(t, `ALTER SEQUENCE orders.outbox_seq_seq CACHE 20`) },
			check: "sequence cache", level: outbox.Fail,
			says: []string{"cache of 20", `ALTER SEQUENCE "orders"."outbox_seq_seq" CACHE 1`},
		},
		{
			name: "a sequence below what is published",
			cause: func(t *testing.T, e *examined) {
				e.exec(t, `SELECT setval('orders.outbox_seq_seq', 7)`)
				e.published(t, 8)
				e.exec(t, `SELECT setval('orders.outbox_seq_seq', 3)`)
			},
			check: "sequence", level: outbox.Fail,
			says: []string{"at 3, below message 8", `setval('"orders"."outbox_seq_seq"', 8)`},
		},
		{
			name: "a sequence below what waits",
			cause: func(t *testing.T, e *examined) {
				e.broker.SetDown(true)
				write(t, e.writer.pool, message("orders", "a", 2))
				e.exec(t, `SELECT setval('orders.outbox_seq_seq', 1)`)
			},
			check: "sequence", level: outbox.Fail, says: []string{"at 1, below message 2"},
		},
		{
			name: "an outbox from another server",
			cause: func(t *testing.T, e *examined) {
				e.stop() // before a leader rebases it
				e.exec(t, `UPDATE orders.outbox_identity SET system_identifier = 4711`)
			},
			check: "identity", level: outbox.Fail, says: []string{"system identifier 4711", "not rebased", "start a relay"},
		},
		{
			name:  "no leader any more",
			cause: func(_ *testing.T, e *examined) { e.stop() },
			check: "leader", level: outbox.Fail, says: []string{"relay relay has no leader since epoch 1", "forget"},
		},
		{
			name: "a name that never led",
			cause: func(t *testing.T, e *examined) {
				_, stop := start(t, e.Pool, e.broker, outbox.RelayOptions{Name: "search"})
				eventually(t, func() error { return e.knows(t, "search") })
				stop()
				e.exec(t, `UPDATE orders.outbox_lease SET epoch = 0 WHERE relay = 'search'`)
			},
			check: "leader", level: outbox.Fail, says: []string{"relay search has never had a leader", "orderflow outbox forget search"},
		},
		{
			name: "nobody at all",
			cause: func(t *testing.T, e *examined) {
				e.stop()
				if err := outbox.Forget(t.Context(), e.Pool, schema, "relay", "ada"); err != nil {
					t.Fatal(err)
				}
			},
			check: "leader", level: outbox.Fail, says: []string{"there is no relay", "start a relay"},
		},
		{
			name: "a broker that is away",
			cause: func(t *testing.T, e *examined) {
				e.broker.SetDown(true)
				write(t, e.writer.pool, message("orders", "a", 2))
			},
			check: "backlog", level: outbox.Fail, opts: noPatience, says: []string{"relay relay: 1 messages wait", "the leader is there", "broker"},
		},
		{
			name: "a backlog without a leader",
			cause: func(t *testing.T, e *examined) {
				e.stop()
				write(t, e.writer.pool, message("orders", "a", 2))
			},
			check: "backlog", level: outbox.Fail, opts: noPatience, says: []string{"1 messages wait", "start the relay"},
		},
		{
			name: "a parked key",
			cause: func(t *testing.T, e *examined) {
				refuse, _ := poison("bad", 1)
				e.stop()
				start(t, e.Pool, &outboxtest.Broker{Refuse: refuse}, outbox.RelayOptions{})
				write(t, e.writer.pool, message("orders", "bad", 1), message("orders", "bad", 2))
			},
			check: "parked keys", level: outbox.Warn, says: []string{"1 keys are parked with 2 messages", "orderflow outbox parked"},
		},
		{
			name: "a writer that does not lock its keys",
			cause: func(t *testing.T, e *examined) {
				outOfOrder(t, e.Pool, e.broker)
			},
			check: "order", level: outbox.Fail, says: []string{"1 messages were ever published behind", "NoKeyLock"},
		},
		{
			name: "a leaf that waits for a relay",
			cause: func(t *testing.T, e *examined) {
				start(t, e.Pool, &outboxtest.Broker{Sending: func([]outbox.Record) error { return outboxtest.ErrDown }}, outbox.RelayOptions{Name: "search"})
				eventually(t, func() error { return e.knows(t, "search") })
				e.old(t)
			},
			check: "ring", level: outbox.Warn, says: []string{"1h30m", "it waits for relay search", "leader and the backlog of search"},
		},
		{
			name: "a leaf that a transaction uses",
			cause: func(t *testing.T, e *examined) {
				tx := begin(t, e.Pool)
				exec1(t, tx, `LOCK TABLE orders.outbox IN ACCESS SHARE MODE`)
				e.old(t)
			},
			check: "ring", level: outbox.Warn, says: []string{"of postgres, idle in transaction, uses it", "pg_terminate_backend("},
		},
		{
			name: "a ring that nobody tidies",
			cause: func(t *testing.T, e *examined) {
				e.stop()
				e.old(t)
				e.exec(t, `INSERT INTO orders.outbox_cursor (relay, epoch, n, prev) SELECT 'relay', 2, 0, pg_current_snapshot()`)
			},
			check: "ring", level: outbox.Warn, says: []string{"no relay leads", "start a relay"},
		},
		{
			name: "a leaf that the leader has yet to come to",
			cause: func(t *testing.T, e *examined) {
				e.stop()
				e.old(t)
				start(t, e.Pool, e.broker, outbox.RelayOptions{}, func(r *outbox.Relay) { r.SetTidyEvery(time.Hour) })
				waitFor(t, e.broker, 2)
			},
			check: "ring", level: outbox.Warn, says: []string{"the leader has not come to it yet", "relay's log"},
		},
		{
			name: "a transaction that is held open",
			cause: func(t *testing.T, e *examined) {
				tx := begin(t, e.writer.pool)
				exec1(t, tx, `SELECT 'what it
					ran'`)
			},
			check: "transactions", level: outbox.Warn, opts: noPatience,
			says: []string{"of WRITER (", "idle in transaction, SELECT 'what it ran'", "pg_terminate_backend("},
		},
		{
			name: "a prepared transaction that was forgotten",
			cause: func(t *testing.T, e *examined) {
				gid := "it's " + e.writer.role
				quoted := strings.ReplaceAll(gid, "'", "''")
				tx := begin(t, e.Pool)
				exec1(t, tx, `LOCK TABLE orders.outbox_audit IN ACCESS SHARE MODE`)
				exec1(t, tx, `PREPARE TRANSACTION '`+quoted+`'`)
				t.Cleanup(func() { e.exec(t, `ROLLBACK PREPARED '`+quoted+`'`) })
			},
			check: "prepared transactions", level: outbox.Fail, opts: noPatience,
			says: []string{"it's WRITER of postgres was prepared", "ROLLBACK PREPARED 'it''s WRITER'"},
		},
		{
			name: "a role that commits asynchronously",
			cause: func(t *testing.T, e *examined) {
				e.exec(t, `ALTER ROLE `+e.writer.role+` SET synchronous_commit = off`)
			},
			check: "commits", level: outbox.Warn, says: []string{"role WRITER commits with synchronous_commit = off", "ALTER ROLE WRITER RESET"},
		},
		{
			name: "a role that commits asynchronously here, whatever it does elsewhere",
			cause: func(t *testing.T, e *examined) {
				e.exec(t, `ALTER ROLE `+e.writer.role+` SET synchronous_commit = on`)
				e.inDatabase(t, `ALTER ROLE `+e.writer.role+` IN DATABASE %I SET synchronous_commit = off`)
			},
			check: "commits", level: outbox.Warn, says: []string{"role WRITER commits", "ALTER ROLE WRITER IN DATABASE"},
		},
		{
			name:  "a database that commits asynchronously",
			cause: func(t *testing.T, e *examined) { e.inDatabase(t, `ALTER DATABASE %I SET synchronous_commit = 'FALSE'`) },
			check: "commits", level: outbox.Warn, says: []string{"role WRITER commits", "ALTER DATABASE"},
		},
		{
			name:  "a writer that numbers its messages itself",
			cause: func(t *testing.T, e *examined) { e.exec(t, `GRANT INSERT ON orders.outbox TO `+e.writer.role) },
			check: "grants", level: outbox.Fail, says: []string{"writer WRITER may set txid, set seq, set slot", `SELECT "orders"."outbox_grant"('WRITER', NULL)`},
		},
		{
			name: "a writer that has been given everything",
			cause: func(t *testing.T, e *examined) {
				e.exec(t, `GRANT ALL ON ALL TABLES IN SCHEMA orders TO `+e.writer.role)
				e.exec(t, `GRANT ALL ON ALL SEQUENCES IN SCHEMA orders TO `+e.writer.role)
			},
			check: "grants", level: outbox.Fail,
			says: []string{"set the sequence, read messages, change messages, delete messages, truncate the ring, change what relays keep"},
		},
		{
			name: "a writer that reads a leaf",
			cause: func(t *testing.T, e *examined) {
				e.exec(t, `GRANT SELECT (payload) ON orders.outbox_3 TO `+e.writer.role)
			},
			check: "grants", level: outbox.Fail, says: []string{"writer WRITER may read messages"},
		},
		{
			name:  "no role of its own for the writer",
			cause: func(t *testing.T, e *examined) { e.exec(t, `REVOKE ALL ON orders.outbox FROM `+e.writer.role) },
			check: "grants", level: outbox.Warn, says: []string{"no role but the owner", "outbox_grant"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := newExamined(t)
			if _, err := complaint(examine(t, e.Pool, outbox.ExamineOptions{}), tc.check); err == nil {
				t.Fatalf("a complaint about %s before anything is wrong", tc.check)
			}
			tc.cause(t, e)
			eventually(t, func() error {
				found, err := complaint(examine(t, e.Pool, tc.opts), tc.check)
				if err != nil {
					return err
				}
				if found.Level != tc.level || found.Why == "" || found.Next == "" {
					return fmt.Errorf("finding %+v, want level %s, why, and what next", found, tc.level)
				}
				for _, part := range tc.says {
					part = strings.ReplaceAll(part, "WRITER", e.writer.role)
					if !strings.Contains(found.What+" | "+found.Why+" | "+found.Next, part) {
						return fmt.Errorf("finding %+v, want it to say %q", found, part)
					}
				}
				return nil
			})
		})
	}
}

func TestExamineSaysWhatItsRoleCannotSee(t *testing.T) {
	t.Parallel()
	e := newExamined(t)
	e.exec(t, `ALTER ROLE `+e.reader+` SET synchronous_commit = on`)
	findings := examine(t, e.RolePool(e.reader), outbox.ExamineOptions{})
	for check, what := range map[string]string{
		"transactions": "transactions of other roles are hidden",
		"commits":      "how role " + e.writer.role + " commits cannot be seen",
	} {
		found, err := complaint(findings, check)
		if err != nil || found.Level != outbox.Warn || !strings.Contains(found.What, what) || found.Next == "" {
			t.Errorf("finding %+v, %v, want a warning that %s", found, err, what)
		}
	}
}

// published waits until a message is written and published with seq n.
func (e *examined) published(t *testing.T, n int64) {
	t.Helper()
	write(t, e.writer.pool, message("orders", "a", int(n)))
	eventually(t, func() error {
		records := e.broker.Records()
		if !slices.ContainsFunc(records, func(r outbox.Record) bool { return r.Seq == n }) {
			return fmt.Errorf("message %d is not published", n)
		}
		return backlogIs(t, e.Pool, 0)
	})
}

func (e *examined) knows(t *testing.T, relay string) error {
	var epoch int64
	err := e.Pool.QueryRow(t.Context(), `SELECT epoch FROM orders.outbox_lease WHERE relay = $1`, relay).Scan(&epoch)
	if err == nil && epoch == 0 {
		err = fmt.Errorf("relay %s does not lead yet", relay)
	}
	return err
}

// old puts a message of an hour and a half ago into a leaf that is not the current one.
func (e *examined) old(t *testing.T) {
	t.Helper()
	e.exec(t, `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload, created_at)
		SELECT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint + 4) % 8,
			gen_random_uuid(), 'orders', 'a', 't', 'c', '', clock_timestamp() - interval '90 minutes'`)
}

// inDatabase runs sql with the database's name for its %I.
func (e *examined) inDatabase(t *testing.T, sql string) {
	t.Helper()
	var named string
	if err := e.Pool.QueryRow(t.Context(), `SELECT format($1, current_database())`, sql).Scan(&named); err != nil {
		t.Fatal(err)
	}
	e.exec(t, named)
}

// begin opens a transaction that ends with the test.
func begin(t *testing.T, pool *pgxpool.Pool) *pgxpool.Conn {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = conn.Exec(context.WithoutCancel(t.Context()), `ROLLBACK`) // a warning where it was prepared
		conn.Release()
	})
	exec1(t, conn, `BEGIN`)
	return conn
}

func exec1(t *testing.T, conn *pgxpool.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// outOfOrder makes the relay publish a message behind a later one of its key: two writers without the key's lock.
func outOfOrder(t *testing.T, pool *pgxpool.Pool, broker *outboxtest.Broker) {
	t.Helper()
	have := len(broker.Records())
	unlocked := outbox.Writer{Schema: schema, NoKeyLock: true}
	first, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unlocked.Write(t.Context(), first, message("orders", "unlocked", 1)); err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return unlocked.Write(t.Context(), tx, message("orders", "unlocked", 2))
	}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, broker, have+1)
	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, broker, have+2)
}

// What is set on a server counts for all its writers; and a standby shows what its primary last sent.
func TestExamineNamesAServerThatCommitsAsynchronouslyAndAStandby(t *testing.T) {
	t.Parallel()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil { // the server may run as another user
			t.Fatal(err)
		}
	}
	opts := localpg.Options{
		DataDir: filepath.Join(dir, "postgres"), NoFsync: true, Auth: "md5", InitCache: filepath.Join(cache, "orderflow", "pgtest"),
		Parameters: map[string]string{"synchronous_commit": "off", "shared_buffers": "16MB"},
	}
	examineServer := func(check string, prepare func(*pgxpool.Pool, string)) (outbox.Finding, error) {
		server, err := localpg.Start(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := server.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		prepare(pool, server.URL("postgres"))
		return complaint(examine(t, pool, outbox.ExamineOptions{}), check)
	}
	found, err := examineServer("commits", func(pool *pgxpool.Pool, url string) {
		(&pgtest.DB{URL: url, Pool: pool}).Migrate(t, outbox.Migrations(), schema)
		if _, err := pool.Exec(t.Context(), `CREATE ROLE writer; SELECT orders.outbox_grant('writer', NULL)`); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil || found.Level != outbox.Warn || !strings.Contains(found.What, "role writer") || !strings.Contains(found.Next, "the server's configuration") {
		t.Errorf("finding %+v, %v, want the server's setting", found, err)
	}
	if err := os.WriteFile(filepath.Join(opts.DataDir, "pgdata", "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	found, err = examineServer("primary", func(*pgxpool.Pool, string) {})
	if err != nil || found.Level != outbox.Fail || !strings.Contains(found.What, "standby") || !strings.Contains(found.Next, "primary's URL") {
		t.Errorf("finding %+v, %v, want that it is a standby", found, err)
	}
}
