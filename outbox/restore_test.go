//go:build servers

package outbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// pgTool returns a command of the Postgres that the test servers run.
func pgTool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	binaries, err := localpg.Find(t.Context(), 0)
	if err != nil {
		t.Fatalf("%v: %s is not among what is downloaded instead; install Postgres (Debian: apt-get install postgresql)", err, name)
	}
	return exec.CommandContext(t.Context(), filepath.Join(binaries.Dir, name), args...)
}

// run runs command and returns what it wrote.
func run(t *testing.T, command *exec.Cmd) []byte {
	t.Helper()
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	if err := command.Run(); err != nil {
		t.Fatalf("%s: %v: %s", command.Path, err, said.String())
	}
	return out.Bytes()
}

// A promoted replica has the identifier of the server it replicated and the durable cursor, and gives out again the
// transaction ids that had not reached it.
func TestPromotedReplicaGoesOnWhereThePrimaryWas(t *testing.T) {
	t.Parallel()
	primary := newServer(t, func(o *localpg.Options) {
		o.Parameters["wal_level"] = "replica"
		o.Parameters["max_wal_senders"] = "4"
	})
	primary.migrate(t)
	replica := startServer(t, primary.baseBackup(t))
	behind := &front{server: primary}
	url := primary.URL("postgres")
	writer, broker := behind.pool(t, url), &outboxtest.Broker{}
	relay := startWatched(t, behind.pool(t, url), broker)
	write(t, writer, message("orders", "a", 0))
	waitFor(t, broker, 1)
	eventually(t, func() error { return backlogIs(t, writer, 0) })
	var written string
	if err := writer.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&written); err != nil {
		t.Fatal(err)
	}
	standby, err := pgx.Connect(t.Context(), replica.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = standby.Close(t.Context()) }()
	eventually(t, func() error {
		var there bool
		err := standby.QueryRow(t.Context(), `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, written).Scan(&there)
		if err == nil && !there {
			err = errors.New("the replica is behind")
		}
		return err
	})

	before := relay.rememberMore(t, primary, writer)
	behind.change(func(s *ownServer) *ownServer {
		s.crash(t)
		var promoted bool
		if err := standby.QueryRow(t.Context(), `SELECT pg_promote()`).Scan(&promoted); err != nil || !promoted {
			t.Fatalf("pg_promote = %v, %v", promoted, err)
		}
		return replica
	})
	for n := 1; n <= 30; n++ {
		write(t, writer, message("orders", "a", n))
	}
	eachOnceInOrder(t, waitFor(t, broker, 31), "a", 31)
	relay.noticed(t, 0, 0)
	idsWereReused(t, writer, before)
	if rebases := relay.count(t, "outbox.rebases"); rebases != 0 {
		t.Errorf("outbox.rebases is %v, want 0: the ids mean the same in a replica", rebases)
	}
}

// baseBackup returns how to start a streaming replica of s.
func (s *ownServer) baseBackup(t *testing.T) localpg.Options {
	t.Helper()
	opts := s.opts
	opts.DataDir, opts.Port = serverDir(t), 0
	if err := os.Mkdir(opts.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(opts.DataDir, "pgdata")
	run(t, pgTool(t, "pg_basebackup", "--dbname="+s.URL("postgres"), "--pgdata="+data,
		"--write-recovery-conf", "--checkpoint=fast", "--no-sync"))
	password, err := os.ReadFile(filepath.Join(s.opts.DataDir, "password"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(opts.DataDir, "password"), password, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(s.opts.DataDir, "pgdata"))
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	err = filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(owner.Uid), int(owner.Gid)))
	})
	if err != nil {
		t.Fatal(err)
	}
	return opts
}

// The ids of the old server mean nothing in the new one, and most lie in its future.
func TestRestoreByPgDumpIntoAnotherServerLosesNothing(t *testing.T) {
	t.Parallel()
	old := newServer(t)
	old.migrate(t)
	other := newServer(t, func(o *localpg.Options) { o.InitCache = "" }) // a system identifier of its own
	behind := &front{server: old}
	superuser, err := pgxpool.New(t.Context(), old.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(superuser.Close)
	burn(t, superuser, 5000)
	old.createRoles(t)
	other.createRoles(t)
	if _, err := superuser.Exec(t.Context(), `
		GRANT USAGE ON SCHEMA orders TO writer, relay;
		SELECT orders.outbox_grant('writer', 'relay')`); err != nil {
		t.Fatal(err)
	}

	writer := behind.pool(t, old.roleURL("writer"))
	broker := &outboxtest.Broker{}
	relay := startWatched(t, behind.pool(t, old.roleURL("relay")), broker)
	for n := range 30 {
		write(t, writer, message("orders", "a", n))
	}
	waitFor(t, broker, 30)
	eventually(t, func() error { return backlogIs(t, superuser, 0) })
	// What the dump finds unpublished, some of it with smaller numbers than what is published.
	late, err := writer.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := (outbox.Writer{Schema: schema}).Write(t.Context(), late, message("orders", "late", 0)); err != nil {
		t.Fatal(err)
	}
	write(t, writer, message("orders", "a", 30))
	waitFor(t, broker, 31)
	eventually(t, func() error { return backlogIs(t, superuser, 0) })
	broker.SetDown(true)
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := 31; n < 40; n++ {
		write(t, writer, message("orders", "a", n))
	}
	said := len(relay.log.since(0))
	behind.change(func(s *ownServer) *ownServer {
		dump := run(t, pgTool(t, "pg_dump", "--dbname="+s.URL("postgres")))
		s.stop(t)
		psql := pgTool(t, "psql", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname="+other.URL("postgres"))
		psql.Stdin = bytes.NewReader(dump)
		run(t, psql)
		return other
	})
	for n := 40; n < 50; n++ {
		write(t, writer, message("orders", "a", n)) // before or after the relay has fitted the outbox to the server
	}
	broker.SetDown(false)
	records := waitFor(t, broker, 51)
	eachOnceInOrder(t, records, "a", 50)
	eachOnceInOrder(t, records, "late", 1)
	relay.noticed(t, said, 0)
	if rebases := relay.count(t, "outbox.rebases"); rebases != 1 {
		t.Errorf("outbox.rebases is %v, want 1", rebases)
	}
	var ahead int // else the old ids did not lie in the new server's future
	check, err := pgx.Connect(t.Context(), other.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = check.Close(t.Context()) }()
	if err := check.QueryRow(t.Context(), `
		SELECT count(*) FROM orders.outbox_cursor
		WHERE epoch = 1 AND pg_snapshot_xmax(prev) > pg_snapshot_xmax(pg_current_snapshot())`).Scan(&ahead); err != nil || ahead == 0 {
		t.Errorf("%d of the restored cursors are ahead of the new server (%v): this proves nothing", ahead, err)
	}
}

func (s *ownServer) createRoles(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for _, role := range []string{"writer", "relay"} {
		if _, err := conn.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s'`, role, pgtest.RolePassword)); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *ownServer) roleURL(role string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/postgres?sslmode=disable", role, pgtest.RolePassword, s.Port())
}

func publishedOf(broker *outboxtest.Broker, key string, n int) error {
	if got := len(values(broker.Records(), key)); got < n {
		return fmt.Errorf("%d messages of key %s are published, want %d", got, key, n)
	}
	return nil
}

// A dump holds a lock on every leaf until it ends. Nothing may wait for it but the truncation.
func TestPgDumpOnlyMakesTheRingGrow(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	old := writeToOldLeaf(t, db.Pool, message("orders", "old", 0))
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
		SELECT $1, gen_random_uuid(), 'orders', 'filler', 't', 'c', convert_to(repeat('x', 1000), 'UTF8')
		FROM generate_series(1, 2000)`, old); err != nil {
		t.Fatal(err)
	}
	dump := pgTool(t, "pg_dump", "--dbname="+db.URL)
	out, err := dump.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	// Nobody reads what it writes, so it stands still with its locks when the pipe is full.
	eventually(t, func() error {
		var dumping bool
		err := db.Pool.QueryRow(t.Context(), `
			SELECT EXISTS (
				SELECT FROM pg_locks
				WHERE relation = $1::text::regclass AND mode = 'AccessShareLock' AND pid IN (
					SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_dump' AND datname = current_database())
			)`, fmt.Sprint("orders.outbox_", old)).Scan(&dumping)
		if err == nil && !dumping {
			err = errors.New("pg_dump is not at work")
		}
		return err
	})
	start(t, db.Pool, broker, shortRetention(), often)
	for n := range 20 { // each one is published by a leader that has had the time to truncate
		write(t, db.Pool, message("orders", "a", n))
		eventually(t, func() error { return publishedOf(broker, "a", n+1) })
	}
	if n := rowsIn(t, db.Pool, old); n != 2001 {
		t.Errorf("leaf %d has %d rows while it is dumped, want all 2001", old, n)
	}
	dumped, err := io.ReadAll(out)
	if err == nil {
		err = dump.Wait()
	}
	if err != nil || bytes.Count(dumped, []byte("filler")) != 2000 {
		t.Errorf("pg_dump has read %d of 2000 rows: %v", bytes.Count(dumped, []byte("filler")), err)
	}
	eventually(t, func() error { return isEmpty(t, db.Pool, old) })
}
