package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
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
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/outbox"
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
