package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	s, err := Start(context.Background(), Options{DataDir: dir, NoFsync: true, outlive: outlive})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("ready", s.PID())
	select {}
}

// dataDir is a folder that the server's account can reach, also when the tests run as root.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "orderflow-localpg-")
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

func TestStartRefusesADirectoryInUse(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, Options{DataDir: dir})
	if _, err := Start(t.Context(), Options{DataDir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("second Start = %v, want ErrInUse", err)
	}
	if got := query(t, s.URL("postgres"), `SELECT 'alive'`); got != "alive" {
		t.Errorf("first server answers %q, want alive", got)
	}
}

func TestStartSaysThatThePortIsTaken(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: dataDir(t)})
	_, err := Start(t.Context(), Options{DataDir: dataDir(t), Port: s.Port(), NoFsync: true})
	if err == nil || !strings.Contains(err.Error(), strconv.Itoa(s.Port())) {
		t.Errorf("Start on a taken port = %v, want an error that names port %d", err, s.Port())
	}
}

func TestStartSurvivesAKilledOwner(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		outlive bool
	}{
		{"the server dies with its owner", false},
		{"the server outlives its owner and is stopped as an orphan", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := dataDir(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LOCALPG_TEST_OWNER="+dir)
			if tt.outlive {
				cmd.Env = append(cmd.Env, "LOCALPG_TEST_OUTLIVE=1")
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var word string
			var pid int
			if _, err := fmt.Fscan(out, &word, &pid); err != nil || word != "ready" {
				t.Fatalf("owner said %q, %v; want ready and a pid", word, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			s := start(t, Options{DataDir: dir})
			if s.PID() == pid {
				t.Errorf("server pid = %d, that of the killed owner's server", pid)
			}
			if pids := serverProcesses(filepath.Join(dir, "pgdata")); slices.Contains(pids, pid) {
				t.Errorf("the old server %d is among the running ones %v", pid, pids)
			}
			if got := query(t, s.URL("postgres"), `SELECT 'alive'`); got != "alive" {
				t.Errorf("new server answers %q, want alive", got)
			}
		})
	}
}

func TestStartLeavesAForeignProcessWithTheOldPIDAlone(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, Options{DataDir: dir})
	lock, err := os.ReadFile(filepath.Join(dir, "pgdata", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	foreign := exec.Command("sleep", "60")
	if err := foreign.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = foreign.Process.Kill()
		_ = foreign.Wait()
	}()
	_, rest, _ := strings.Cut(string(lock), "\n")
	stale := strconv.Itoa(foreign.Process.Pid) + "\n" + rest
	if err := os.WriteFile(filepath.Join(dir, "pgdata", "postmaster.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, Options{DataDir: dir})
	if err := foreign.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("foreign process after Start: %v, want it alive", err)
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

func TestServerAsksForThePassword(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: dataDir(t)})
	_, err := pgx.Connect(t.Context(), strings.Replace(s.URL("postgres"), s.password, "wrong", 1))
	if err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("connect with a wrong password = %v, want it refused", err)
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
