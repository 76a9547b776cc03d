package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx", for goose
	"github.com/pressly/goose/v3"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// ownServer is a Postgres that a test may crash.
type ownServer struct {
	*localpg.Server
	opts localpg.Options
	used sync.RWMutex // read-locked by who uses a pooled connection
}

func newServer(t *testing.T) *ownServer {
	t.Helper()
	dir := t.TempDir()
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil { // the server may run as another user
			t.Fatal(err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	s := &ownServer{opts: localpg.Options{
		DataDir: filepath.Join(dir, "postgres"),
		NoFsync: true,
		Auth:    "md5",
		// The servers that pgtest starts come from there too.
		InitCache: filepath.Join(cache, "orderflow", "pgtest"),
		// The WAL writer far behind: what no commit has flushed is lost in a crash.
		Parameters: map[string]string{"wal_writer_delay": "10s", "shared_buffers": "16MB"},
	}}
	s.start(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *ownServer) start(t *testing.T) {
	t.Helper()
	var err error
	if s.Server, err = localpg.Start(t.Context(), s.opts); err != nil {
		t.Fatal(err)
	}
	s.opts.Port = s.Port()
}

// crash ends the server as a crash does, while no pooled connection is used, and starts it again.
func (s *ownServer) crash(t *testing.T) {
	t.Helper()
	s.used.Lock()
	defer s.used.Unlock()
	if err := syscall.Kill(s.PID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-s.Exited()
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.start(t)
}

// pooled is a pool that hides a crash from its user, as PgBouncer can: it tries a connection before it hands it out, and
// makes its user wait until the server is back.
func (s *ownServer) pooled(t *testing.T) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		s.used.RLock()
		alive := conn.Ping(ctx) == nil
		if !alive {
			s.used.RUnlock()
		}
		return alive, nil
	}
	config.AfterRelease = func(*pgx.Conn) bool {
		s.used.RUnlock()
		return true
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (s *ownServer) migrate(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA orders`); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", s.URL("postgres")+"&search_path=orders")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, outbox.Migrations(), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// burn takes n transaction ids and writes nothing.
func burn(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	_, err := pool.Exec(t.Context(), fmt.Sprintf(`
		DO $$ BEGIN FOR i IN 1..%d LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`, n))
	if err != nil {
		t.Fatal(err)
	}
}

// After a crash Postgres gives the ids of lost transactions out again. A relay that kept its snapshot in memory would
// take the new transactions for old ones.
func TestCrashOfPostgresBehindAPoolerLosesNothing(t *testing.T) {
	t.Parallel()
	server := newServer(t)
	writer, pool := server.pooled(t), server.pooled(t)
	server.migrate(t, writer)
	broker := &outboxtest.Broker{}
	// No renewal and no tidying: nothing may flush what the crash is to lose.
	relay, _ := start(t, pool, broker, outbox.RelayOptions{Lease: time.Minute},
		func(r *outbox.Relay) { r.SetTidyEvery(time.Hour) })
	write(t, writer, message("orders", "a", 0))
	waitFor(t, broker, 1)
	eventually(t, func() error { return backlogIs(t, writer, 0) })

	// Idle: the relay's memory is ahead of its durable cursor.
	burn(t, writer, 300)
	polled := pool.Stat().AcquireCount() + 5
	eventually(t, func() error {
		relay.Kick()
		if n := pool.Stat().AcquireCount(); n < polled {
			return fmt.Errorf("%d polls, want %d", n, polled)
		}
		return nil
	})
	var before string
	if err := writer.QueryRow(t.Context(), `SELECT pg_current_snapshot()::text`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	server.crash(t)
	for n := 1; n <= 100; n++ {
		write(t, writer, message("orders", "a", n))
	}
	for n, value := range values(waitFor(t, broker, 101), "a") {
		if want := fmt.Sprintf(`{"n":%d}`, n); value != want {
			t.Fatalf("record %d is %s, want %s: each message once, in order", n, value, want)
		}
	}
	var hidden int
	if err := writer.QueryRow(t.Context(), `
		SELECT count(*) FROM orders.outbox
		WHERE payload <> '{"n":0}' AND pg_visible_in_snapshot(txid, $1::text::pg_snapshot)`, before).Scan(&hidden); err != nil {
		t.Fatal(err)
	}
	if hidden == 0 {
		t.Error("the snapshot from before the crash hides nothing: no transaction id was lost, so this proves nothing")
	}
}

// A page may be acked after the server has changed. Its snapshot must not become durable then.
func TestCheckpointIsRefusedUnderAnotherEpochOrServer(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	relay, err := outbox.NewRelay(db.Pool, &outboxtest.Broker{}, outbox.RelayOptions{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	var incarnation string
	if err := db.Pool.QueryRow(t.Context(), `SELECT orders.outbox_incarnation()`).Scan(&incarnation); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		epoch       int64
		incarnation string
		refused     bool
	}{
		{"an earlier epoch has been followed by another leader", -1, incarnation, true},
		{"a later epoch is nobody's", 1, incarnation, true},
		{"a crash has taken the token away", 0, incarnation + "2b5b0c2e-6a1c-4f4e-9d5b-0a9c0b6f7d11", true},
		{"the leader on the server that it knows", 0, incarnation, false},
	} {
		if err := relay.Checkpoint(t.Context(), c.epoch, c.incarnation, "100:100:"); (err != nil) != c.refused {
			t.Errorf("%s: Checkpoint = %v, want refused: %v", c.name, err, c.refused)
		}
	}
}

func backlogIs(t *testing.T, pool *pgxpool.Pool, want int64) error {
	status, err := outbox.Inspect(t.Context(), pool, schema)
	if err == nil && status.Relays[0].Backlog != want {
		err = fmt.Errorf("backlog is %d, want %d", status.Relays[0].Backlog, want)
	}
	return err
}

// F30: the ids of the old server mean nothing in the new one, and most lie in its future.
func TestRestoreIntoAnotherServerLosesNothing(t *testing.T) {
	t.Parallel()
	old, before := newOutbox(t), &outboxtest.Broker{}
	burn(t, old.Pool, 3000)
	_, stop := start(t, old.Pool, before, outbox.RelayOptions{})
	for n := range 30 {
		write(t, old.Pool, message("orders", "a", n))
	}
	waitFor(t, before, 30)
	stop()
	for n := 30; n < 40; n++ {
		write(t, old.Pool, message("orders", "a", n))
	}

	restored := newServer(t)
	restore(t, old.URL, restored)
	to, after := restored.pooled(t), &outboxtest.Broker{}
	// Servers copied from one folder have one identifier. What differs is what matters: the transaction ids.
	if _, err := to.Exec(t.Context(), `UPDATE orders.outbox_identity SET system_identifier = 1`); err != nil {
		t.Fatal(err)
	}
	start(t, to, after, outbox.RelayOptions{})
	for n := 40; n < 50; n++ {
		write(t, to, message("orders", "a", n))
	}
	records := waitFor(t, after, 20)
	for i, r := range records {
		if want := fmt.Sprintf(`{"n":%d}`, 30+i); string(r.Value) != want {
			t.Fatalf("record %d after the restore is %s, want %s: each once, in order", i, r.Value, want)
		}
	}
}

func TestRestoreWithoutItsSequenceIsRefused(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	write(t, db.Pool, message("orders", "a", 1), message("orders", "a", 2))
	if _, err := db.Pool.Exec(t.Context(), `
		UPDATE orders.outbox_identity SET system_identifier = 1;
		SELECT setval('orders.outbox_seq_seq', 1)`); err != nil {
		t.Fatal(err)
	}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	eventually(t, func() error { // it takes the lease again and again, and publishes nothing
		var epoch int64
		err := db.Pool.QueryRow(t.Context(), `SELECT epoch FROM orders.outbox_lease`).Scan(&epoch)
		if err == nil && epoch < 3 {
			err = fmt.Errorf("epoch is %d, want 3 attempts", epoch)
		}
		return err
	})
	var rebased bool
	if err := db.Pool.QueryRow(t.Context(), `
		SELECT EXISTS (SELECT FROM orders.outbox_identity WHERE system_identifier <> 1)`).Scan(&rebased); err != nil {
		t.Fatal(err)
	}
	if records := broker.Records(); rebased || len(records) != 0 {
		t.Errorf("rebased %v and published %d messages, want neither", rebased, len(records))
	}
	if _, err := db.Pool.Exec(t.Context(), `SELECT setval('orders.outbox_seq_seq', 2)`); err != nil {
		t.Fatal(err)
	}
	waitFor(t, broker, 2)
}

// restore is pg_dump | psql.
func restore(t *testing.T, from string, to *ownServer) {
	t.Helper()
	binaries, err := localpg.Find(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var dump, said bytes.Buffer
	pgDump := exec.CommandContext(t.Context(), filepath.Join(binaries.Dir, "pg_dump"), from)
	pgDump.Stdout, pgDump.Stderr = &dump, &said
	if err := pgDump.Run(); err != nil {
		t.Fatalf("pg_dump: %v: %s", err, said.String())
	}
	psql := exec.CommandContext(t.Context(), filepath.Join(binaries.Dir, "psql"),
		"--quiet", "--set=ON_ERROR_STOP=1", "--dbname="+to.URL("postgres"))
	psql.Stdin, psql.Stderr = &dump, &said
	if err := psql.Run(); err != nil {
		t.Fatalf("psql: %v: %s", err, said.String())
	}
	var rows int
	conn, err := pgx.Connect(t.Context(), to.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM orders.outbox`).Scan(&rows); err != nil || rows == 0 {
		t.Fatalf("%d rows restored (%v)", rows, err)
	}
}
