package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LOCALPG_TEST_OWNER"); dir != "" {
		ownServer(dir, os.Getenv("LOCALPG_TEST_OUTLIVE") != "")
		return
	}
	goleak.VerifyTestMain(m)
}

// ownServer is the process that a test kills: it starts a server, says so and never stops it.
func ownServer(dir string, outlive bool) {
	s, err := Start(context.Background(), Options{DataDir: dir, NoFsync: true, InitCache: initCache(), outlive: outlive})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("ready", s.PID())
	select {}
}

// initCache spares most tests an initdb of a second.
func initCache() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "orderflow", "pgtest")
}

// dataDir is a folder that the server's account can reach, also when the tests run as root.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(Scratch(), "orderflow-localpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "postgres")
}

func start(t *testing.T, opts Options) *Server {
	t.Helper()
	opts.NoFsync = true
	if opts.InitCache == "" {
		opts.InitCache = initCache()
	}
	s, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return s
}

func query(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var got string
	if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func exec1(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestStartKeepsTheDataOfAnEarlierStart(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, Options{DataDir: dir})
	exec1(t, s.URL("postgres"), `CREATE TABLE kept AS SELECT 'yes' AS v`)
	if err := s.Stop(t.Context()); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	select {
	case <-s.Exited():
	default:
		t.Error("Exited is open after Stop, want closed")
	}
	began := time.Now()
	s = start(t, Options{DataDir: dir, Port: s.Port()})
	t.Logf("warm start took %v", time.Since(began))
	if got := query(t, s.URL("postgres"), `SELECT v FROM kept`); got != "yes" {
		t.Errorf("row after restart = %q, want %q", got, "yes")
	}
}

func TestARunningServer(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, Options{DataDir: dir})
	t.Run("keeps another owner out of its directory", func(t *testing.T) {
		if _, err := Start(t.Context(), Options{DataDir: dir}); !errors.Is(err, ErrInUse) {
			t.Errorf("second Start = %v, want ErrInUse", err)
		}
		if got := query(t, s.URL("postgres"), `SELECT 'alive'`); got != "alive" {
			t.Errorf("first server answers %q, want alive", got)
		}
	})
	t.Run("asks for the password", func(t *testing.T) {
		_, err := pgx.Connect(t.Context(), strings.Replace(s.URL("postgres"), s.password, "wrong", 1))
		if err == nil || !strings.Contains(err.Error(), "password authentication failed") {
			t.Errorf("connect with a wrong password = %v, want it refused", err)
		}
	})
	// Ctrl-C in a terminal goes to every process of the group in the foreground.
	t.Run("is not in its owner's process group", func(t *testing.T) {
		group, err := syscall.Getpgid(s.PID())
		if err != nil || group == syscall.Getpgrp() {
			t.Errorf("process group of the server = %d, %v; want another than ours", group, err)
		}
	})
	other := dataDir(t)
	t.Run("keeps its port, and the other is told", func(t *testing.T) {
		_, err := Start(t.Context(), Options{DataDir: other, Port: s.Port(), NoFsync: true, InitCache: initCache()})
		if err == nil || !strings.Contains(err.Error(), strconv.Itoa(s.Port())) {
			t.Errorf("Start on a taken port = %v, want an error that names port %d", err, s.Port())
		}
	})
	t.Run("has a neighbour on another port where that may be", func(t *testing.T) {
		neighbour := start(t, Options{DataDir: other, Port: s.Port(), AnyPort: true})
		if neighbour.Port() == s.Port() {
			t.Errorf("both servers have port %d", s.Port())
		}
	})
}

func TestStartBeginsAgainAfterAnInterruptedInitdb(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	torn := filepath.Join(dir, "pgdata.new", "base")
	if err := os.MkdirAll(torn, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pgdata.new", "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Options{DataDir: dir}) // an initdb of its own, synced to disk
	if err != nil {
		t.Fatal(err)
	}
	if got := query(t, s.URL("postgres"), `SELECT 'alive'`); got != "alive" {
		t.Errorf("server answers %q, want alive", got)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func TestStartRefusesDataOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, Options{DataDir: dir})
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pgdata", "PG_VERSION"), []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{DataDir: dir})
	if err == nil || !strings.Contains(err.Error(), "made by Postgres 9") {
		t.Errorf("Start on data of version 9 = %v, want an error that says so", err)
	}
}

func TestReachNamesTheFolderThatIsClosed(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(t.TempDir(), "closed")
	inside := filepath.Join(closed, "data")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	other := &account{name: "somebody", uid: uint32(os.Geteuid()) + 1, gid: uint32(os.Getegid()) + 1}
	if err := other.reach(inside); err == nil || !strings.Contains(err.Error(), "may not enter "+closed) {
		t.Errorf("reach(%s) = %v, want an error that names %s", inside, err, closed)
	}
	var self *account
	if err := self.reach(inside); err != nil {
		t.Errorf("reach as oneself = %v, want nil", err)
	}
}

func TestInitCacheMakesAServerOfItsOwn(t *testing.T) {
	t.Parallel()
	cache := filepath.Join(t.TempDir(), "cache")
	first := start(t, Options{DataDir: dataDir(t), InitCache: cache, Auth: "md5"})
	exec1(t, first.URL("postgres"), `CREATE TABLE only_here ()`)
	second := start(t, Options{DataDir: dataDir(t), InitCache: cache, Auth: "md5"})
	if got := query(t, second.URL("postgres"), `SELECT count(*)::text FROM pg_class WHERE relname = 'only_here'`); got != "0" {
		t.Errorf("tables of the first server in the second = %s, want 0", got)
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, out string
		want      int
	}{
		{"a distribution's build", "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", 15},
		{"a beta", "postgres (PostgreSQL) 18beta1\n", 18},
		{"something else answers", "psql 15\n", 0},
		{"no number", "postgres (PostgreSQL) devel\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseVersion(tt.out)
			if got != tt.want || (err == nil) != (tt.want > 0) {
				t.Errorf("parseVersion(%q) = %d, %v; want %d", tt.out, got, err, tt.want)
			}
		})
	}
}
