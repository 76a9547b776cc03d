package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx", for goose
	"github.com/pressly/goose/v3"
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// ownServer is a Postgres that a test may crash.
type ownServer struct {
	*localpg.Server
	opts      localpg.Options
	walWriter int // its process, while it is stopped
}

func newServer(t *testing.T, change ...func(*localpg.Options)) *ownServer {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	opts := localpg.Options{
		DataDir: serverDir(t),
		NoFsync: true,
		Auth:    "md5",
		// The servers that pgtest starts come from there too.
		InitCache: filepath.Join(cache, "orderflow", "pgtest"),
		Parameters: map[string]string{
			"shared_buffers":            "16MB",
			"max_prepared_transactions": "5",
			// Nothing but commits and the WAL writer flushes.
			"autovacuum":      "off",
			"wal_level":       "minimal",
			"max_wal_senders": "0",
		},
	}
	for _, c := range change {
		c(&opts)
	}
	return startServer(t, opts)
}

// serverDir is a folder for a server's data, in memory where there is enough. Package pgtest sweeps it up by its name when
// the test could not.
func serverDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(localpg.Scratch(), "orderflow-pgtest-outbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // the server may run as another user
		t.Fatal(err)
	}
	return filepath.Join(dir, "postgres")
}

func startServer(t *testing.T, opts localpg.Options) *ownServer {
	t.Helper()
	s := &ownServer{opts: opts}
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

func (s *ownServer) stop(t *testing.T) {
	t.Helper()
	s.signalWALWriter(syscall.SIGCONT)
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// crash ends the server as a crash does.
func (s *ownServer) crash(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(s.PID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	s.signalWALWriter(syscall.SIGKILL)
	<-s.Exited()
	s.stop(t)
}

// stopWALWriter leaves the WAL writer behind: what no commit flushes is lost in a crash.
func (s *ownServer) stopWALWriter(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `
		SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'`).Scan(&s.walWriter); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.walWriter, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.signalWALWriter(syscall.SIGCONT) })
}

func (s *ownServer) signalWALWriter(sig syscall.Signal) {
	if s.walWriter != 0 {
		_ = syscall.Kill(s.walWriter, sig) // the postmaster may have ended it
		s.walWriter = 0
	}
}

// copyData copies the data of a server that is stopped.
func (s *ownServer) copyData(t *testing.T) localpg.Options {
	t.Helper()
	opts := s.opts
	opts.DataDir, opts.Port = serverDir(t), 0
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", s.opts.DataDir, opts.DataDir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return opts
}

// front stands between pools and a server and hides from them what becomes of it, as PgBouncer can: a connection is tried
// before it is handed out, and while the server is in trouble everybody waits.
type front struct {
	server *ownServer
	used   sync.RWMutex // read-locked by who uses a connection
}

// change has trouble come over the server while nobody uses a connection. It returns the server to go on with.
func (f *front) change(trouble func(*ownServer) *ownServer) {
	f.used.Lock()
	defer f.used.Unlock()
	f.server = trouble(f.server)
}

// pool connects with the name and password in url, to whichever server is behind f.
func (f *front) pool(t *testing.T, url string, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
		f.used.RLock()
		defer f.used.RUnlock()
		conn.Port = uint16(f.server.Port())
		return nil
	}
	config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		f.used.RLock()
		alive := int(conn.Config().Port) == f.server.Port() && conn.Ping(ctx) == nil
		if !alive {
			f.used.RUnlock()
		}
		return alive, nil
	}
	config.AfterRelease = func(*pgx.Conn) bool {
		f.used.RUnlock()
		return true
	}
	for _, c := range change {
		c(config)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// migrate makes the outbox in schema orders of the server's database postgres.
func (s *ownServer) migrate(t *testing.T) {
	t.Helper()
	db, err := sql.Open("pgx", s.URL("postgres")+"&search_path=orders")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(t.Context(), `CREATE SCHEMA orders`); err != nil {
		t.Fatal(err)
	}
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

// watched is a relay whose log and counters a test reads.
type watched struct {
	relay  *outbox.Relay
	stop   func()
	pool   *pgxpool.Pool
	log    logged
	reader *sdk.ManualReader
}

// logged keeps what is logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// since returns what was logged after the first n bytes.
func (l *logged) since(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()[n:]
}

// startWatched runs a relay that renews and tidies nothing by itself: nothing may flush what a crash is to lose.
func startWatched(t *testing.T, pool *pgxpool.Pool, publisher outbox.Publisher) *watched {
	t.Helper()
	w := &watched{pool: pool, reader: sdk.NewManualReader()}
	w.relay, w.stop = start(t, pool, publisher, outbox.RelayOptions{
		Log:   slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &w.log), nil)),
		Meter: sdk.NewMeterProvider(sdk.WithReader(w.reader)).Meter("outbox"),
	}, func(r *outbox.Relay) { r.SetTidyEvery(time.Hour) })
	return w
}

// count returns what a counter of the relay shows.
func (w *watched) count(t *testing.T, name string) float64 {
	t.Helper()
	counts, err := collect(t, w.reader)
	if err != nil {
		t.Fatal(err)
	}
	return counts[name]
}

// rememberMore brings the snapshot in the relay's memory ahead of the durable one and of what s has flushed, and returns
// a snapshot in between.
func (w *watched) rememberMore(t *testing.T, s *ownServer, writer *pgxpool.Pool) (snapshot string) {
	t.Helper()
	s.stopWALWriter(t, writer)
	burn(t, writer, 300)
	if err := writer.QueryRow(t.Context(), `SELECT pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
		t.Fatal(err)
	}
	polled := w.pool.Stat().AcquireCount() + 8
	eventually(t, func() error {
		w.relay.Kick()
		if n := w.pool.Stat().AcquireCount(); n < polled {
			return fmt.Errorf("%d polls, want %d", n, polled)
		}
		return nil
	})
	return snapshot
}

// Each kind of trouble is noticed although every connection seems to live on. What a relay has in memory then means
// nothing: after a crash, and in an older copy, Postgres gives the ids of lost transactions out again, and a snapshot
// from before takes the new ones for old ones.
func TestTroubleOfPostgresBehindAPoolerLosesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		// prepare may use the server before the relay's memory is ahead, and returns the trouble.
		prepare func(*testing.T, *front) func(*ownServer) *ownServer
		reused  bool // transaction ids are given out twice
	}{
		{"a crash of the whole server", crashed, true},
		{"a crash of one backend", backendKilled, true},
		{"a clean restart", restarted, false},
		{"an older copy of its files, elsewhere", copied, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			behind := &front{server: newServer(t)}
			behind.server.migrate(t)
			url := behind.server.URL("postgres")
			writer, broker := behind.pool(t, url), &outboxtest.Broker{}
			relay := startWatched(t, behind.pool(t, url), broker)
			write(t, writer, message("orders", "a", 0))
			waitFor(t, broker, 1)
			eventually(t, func() error { return backlogIs(t, writer, 0) })
			trouble := tt.prepare(t, behind)

			before := relay.rememberMore(t, behind.server, writer)
			said, restarts := len(relay.log.since(0)), relay.count(t, "outbox.restarts")
			behind.change(trouble)
			for n := 1; n <= 30; n++ {
				write(t, writer, message("orders", "a", n))
			}
			eachOnceInOrder(t, waitFor(t, broker, 31), "a", 31)
			relay.noticed(t, said, restarts)
			if tt.reused {
				idsWereReused(t, writer, before)
			}
			relay.stop() // before the server that it is connected to by now
		})
	}
}

func crashed(t *testing.T, _ *front) func(*ownServer) *ownServer {
	return func(s *ownServer) *ownServer {
		s.crash(t)
		s.start(t)
		return s
	}
}

// backendKilled is what the kernel does when memory is short. The postmaster lives on, and so does its start time.
func backendKilled(t *testing.T, _ *front) func(*ownServer) *ownServer {
	return func(s *ownServer) *ownServer {
		victim, err := pgx.Connect(t.Context(), s.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(int(victim.PgConn().PID()), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.signalWALWriter(syscall.SIGKILL)
		eventually(t, func() error { // the postmaster ends all others, then recovers
			if victim.Ping(t.Context()) == nil {
				return errors.New("the killed backend answers")
			}
			conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
			if err != nil {
				return err
			}
			var recovered bool // until then it may be the crash that is still to be noticed
			err = conn.QueryRow(t.Context(), `SELECT NOT EXISTS (SELECT FROM orders.outbox_crash)`).Scan(&recovered)
			if err == nil && !recovered {
				err = errors.New("postgres has not recovered yet")
			}
			return errors.Join(err, conn.Close(t.Context()))
		})
		return s
	}
}

func restarted(t *testing.T, _ *front) func(*ownServer) *ownServer {
	return func(s *ownServer) *ownServer {
		s.stop(t)
		s.start(t)
		return s
	}
}

// copied copies the files of the stopped server, and lets the copy take over when the server has gone on for a while.
func copied(t *testing.T, behind *front) func(*ownServer) *ownServer {
	var older localpg.Options
	behind.change(func(s *ownServer) *ownServer {
		s.stop(t)
		older = s.copyData(t)
		s.start(t)
		return s
	})
	return func(s *ownServer) *ownServer {
		s.stop(t)
		return startServer(t, older)
	}
}

// noticed fails the test unless the relay has dropped its memory since, and has said why.
func (w *watched) noticed(t *testing.T, said int, restarts float64) {
	t.Helper()
	const why = "the lease or the server has changed"
	if log := w.log.since(said); !strings.Contains(log, why) {
		t.Errorf("the relay has logged %q, want it to say %q", log, why)
	}
	if now := w.count(t, "outbox.restarts"); now <= restarts {
		t.Errorf("outbox.restarts is %v as before", now)
	}
}

// idsWereReused fails the test if no message has a transaction id that was given out before.
func idsWereReused(t *testing.T, pool *pgxpool.Pool, before string) {
	t.Helper()
	var hidden int
	if err := pool.QueryRow(t.Context(), `
		SELECT count(*) FROM orders.outbox
		WHERE payload <> '{"n":0}' AND pg_visible_in_snapshot(txid, $1::text::pg_snapshot)`, before).Scan(&hidden); err != nil {
		t.Fatal(err)
	}
	if hidden == 0 {
		t.Error("the snapshot from before hides nothing: no transaction id was given out twice, so this proves nothing")
	}
}

// eachOnceInOrder checks that the messages 0 to n-1 of a key, and no others, first appear in this order.
func eachOnceInOrder(t *testing.T, records []outbox.Record, key string, n int) {
	t.Helper()
	seen, next := map[uuid.UUID]bool{}, 0
	for _, r := range records {
		if r.Key != key || seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		if want := fmt.Sprintf(`{"n":%d}`, next); string(r.Value) != want {
			t.Fatalf("message %d of key %s is %s, want %s", next, key, r.Value, want)
		}
		next++
	}
	if next != n {
		t.Fatalf("%d messages of key %s, want %d", next, key, n)
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

// Behind a pooler another server can take its place between two statements of a new leader.
func TestServerThatIsReplacedBehindANewLeaderIsIdentified(t *testing.T) {
	t.Parallel()
	behind := &front{server: newServer(t)}
	behind.server.migrate(t)
	var original localpg.Options
	behind.change(func(s *ownServer) *ownServer {
		s.stop(t)
		original = s.copyData(t)
		s.start(t)
		return s
	})
	other := startServer(t, original)
	// It was restored from elsewhere, where the lease was taken once as well.
	conn, err := pgx.Connect(t.Context(), other.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `
		UPDATE orders.outbox_identity SET system_identifier = 1;
		UPDATE orders.outbox_lease SET epoch = 1, expires_at = clock_timestamp() + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	replace := make(chan struct{})
	replaced := make(chan struct{})
	go func() {
		<-replace
		behind.change(func(*ownServer) *ownServer { return other })
		close(replaced)
	}()
	var once sync.Once
	pool := behind.pool(t, behind.server.URL("postgres"), func(config *pgxpool.Config) {
		prepare := config.PrepareConn
		var identified atomic.Bool
		config.ConnConfig.Tracer = traced{ends: func(sql string) {
			if strings.Contains(sql, "pg_control_system") {
				identified.Store(true)
			}
		}}
		config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			if identified.Load() {
				once.Do(func() { close(replace) })
				<-replaced
			}
			return prepare(ctx, conn)
		}
	})
	broker := &outboxtest.Broker{}
	relay := startWatched(t, pool, broker)
	eventually(t, func() error {
		if relay.count(t, "outbox.rebases") != 1 {
			return errors.New("the other server is not identified")
		}
		return nil
	})
}

// A sequence that starts again gives new messages of a key smaller numbers than its old ones, and numbers that are
// known as published.
func TestRestoreWithoutItsSequenceIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, ring string }{
		{"the sequence is below a row", ``},
		{"the ring is empty and the sequence below what was published", `TRUNCATE orders.outbox`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db, broker := newOutbox(t), &outboxtest.Broker{}
			_, stop := start(t, db.Pool, broker, outbox.RelayOptions{})
			write(t, db.Pool, message("orders", "a", 0), message("orders", "a", 1))
			waitFor(t, broker, 2)
			stop()
			if _, err := db.Pool.Exec(t.Context(), tt.ring+`;
				UPDATE orders.outbox_identity SET system_identifier = 1;
				SELECT setval('orders.outbox_seq_seq', 1)`); err != nil {
				t.Fatal(err)
			}
			start(t, db.Pool, broker, outbox.RelayOptions{})
			eventually(t, func() error { // it takes the lease again and again
				var epoch int64
				var rebased bool
				err := db.Pool.QueryRow(t.Context(), `
					SELECT epoch, EXISTS (SELECT FROM orders.outbox_identity WHERE system_identifier <> 1)
					FROM orders.outbox_lease`).Scan(&epoch, &rebased)
				if rebased {
					t.Fatal("the outbox is rebased over a sequence that was not restored")
				}
				if err == nil && epoch < 4 {
					err = fmt.Errorf("epoch is %d, want 3 attempts more", epoch)
				}
				return err
			})
			if _, err := db.Pool.Exec(t.Context(), `SELECT setval('orders.outbox_seq_seq', 2)`); err != nil {
				t.Fatal(err)
			}
			write(t, db.Pool, message("orders", "a", 2))
			eachOnceInOrder(t, waitFor(t, broker, 3), "a", 3)
		})
	}
}
