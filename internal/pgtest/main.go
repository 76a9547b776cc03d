package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/filelock"
	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/parallel"
)

// shared is the server of this test binary. A package variable, because tests have nowhere else to find what [Main]
// owns: the testing package hands TestMain's results to nobody.
var shared server

type server struct {
	mu        sync.Mutex
	admin     string // superuser's URL of database postgres; "" before the first use
	err       error  // why there is no server; every later test fails with it at once
	local     *localpg.Server
	dir       string
	run       string // tells this binary's databases from another's on a shared server
	databases int
	templates map[string]string
}

// atOnce is how many tests run at once. They wait for commits, leases and polls most of the time; the server's connections
// are for that many.
const atOnce = 6

// Main runs a package's tests, ends the server they used, and fails when a goroutine is left over. It does not return.
func Main(m *testing.M) {
	if err := parallel.Tests(atOnce); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest: goroutines left over after the tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// url returns the superuser's URL, starting the server at the first call. The caller holds mu.
func (s *server) url(ctx context.Context) (string, error) {
	if s.admin != "" || s.err != nil {
		return s.admin, s.err
	}
	s.templates = map[string]string{}
	s.run = fmt.Sprintf("t%d_%d", os.Getpid(), time.Now().UnixMilli()%1_000_000)
	if url := os.Getenv("ORDERFLOW_TEST_POSTGRES"); url != "" {
		s.admin = url
		return url, nil
	}
	s.err = s.start(ctx)
	return s.admin, s.err
}

func (s *server) start(ctx context.Context) error {
	sweep()
	dir, err := os.MkdirTemp(localpg.Scratch(), fmt.Sprintf("orderflow-pgtest-%d-", os.Getpid()))
	if err != nil {
		return fmt.Errorf("make a folder for the test server: %w", err)
	}
	s.dir = dir
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the server may run as another user
		return fmt.Errorf("open the test server's folder: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err == nil {
		cache = filepath.Join(cache, "orderflow", "pgtest")
	}
	s.local, err = localpg.Start(ctx, localpg.Options{
		DataDir:   filepath.Join(dir, "postgres"),
		NoFsync:   true,
		Auth:      "md5",
		InitCache: cache,
		Parameters: map[string]string{
			"max_connections":           "200",
			"shared_buffers":            "64MB",
			"max_prepared_transactions": "20",
			// A clone touches a few hundred relations, and many tests make one at once.
			"max_locks_per_transaction": "256",
			"wal_level":                 "minimal",
			"max_wal_senders":           "0",
			"log_min_messages":          "fatal",
		},
	})
	if err != nil {
		return fmt.Errorf("start a Postgres server for the tests (or name one in ORDERFLOW_TEST_POSTGRES): %w", err)
	}
	s.admin = s.local.URL("postgres")
	return nil
}

func (s *server) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if s.local == nil {
		return s.dropTemplates(ctx)
	}
	stopped, cancelStop := context.WithCancel(ctx)
	cancelStop() // nobody will read the data again: an immediate shutdown will do
	if err := s.local.Stop(stopped); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the test server's folder: %w", err)
	}
	return nil
}

// dropTemplates cleans up on a server that outlives the binary.
func (s *server) dropTemplates(ctx context.Context) error {
	for _, name := range s.templates {
		if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			return err
		}
	}
	return nil
}

// exec runs one statement as the superuser. Statements about databases cannot run inside a transaction.
func (s *server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.admin)
	if err != nil {
		return fmt.Errorf("connect to the test server: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// sweep removes the folders of test binaries that were killed before they could.
func sweep() {
	for _, parent := range []string{os.TempDir(), localpg.Scratch()} {
		dirs, _ := filepath.Glob(filepath.Join(parent, "orderflow-pgtest-*")) // the only error is a malformed pattern
		for _, dir := range dirs {
			if abandoned(dir) {
				_ = os.RemoveAll(dir) // a leftover that cannot be removed is no reason to fail a test
			}
		}
	}
}

// abandoned reports whether the owner of a server's folder has ended: the kernel has then dropped its lock. A pid would
// say less, because containers that share the folder have pids of their own.
func abandoned(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil || time.Since(info.ModTime()) < time.Minute {
		return false // perhaps its owner is about to take the lock
	}
	lock, err := os.OpenFile(filepath.Join(dir, "postgres", "lock"), os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer func() { _ = filelock.Close(lock) }()
	return filelock.TryLock(lock) == nil
}
