package localpg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// owner is a process that starts a server and is killed.
type owner struct {
	cmd    *exec.Cmd
	server int // the postmaster's pid
}

func startOwner(t *testing.T, dir string, outlive bool) owner {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LOCALPG_TEST_OWNER="+dir)
	if outlive {
		cmd.Env = append(cmd.Env, "LOCALPG_TEST_OUTLIVE=1")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := owner{cmd: cmd}
	var word string
	if _, err := fmt.Fscan(out, &word, &o.server); err != nil || word != "ready" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("owner said %q %s, %v; want ready and a pid", word, rest, err)
	}
	return o
}

func (o owner) kill(t *testing.T) {
	t.Helper()
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = o.cmd.Wait() // it was killed
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
			o := startOwner(t, dir, tt.outlive)
			o.kill(t)
			s := start(t, Options{DataDir: dir})
			if pids := serverProcesses(filepath.Join(dir, "pgdata")); slices.Contains(pids, o.server) {
				t.Errorf("the old server %d is among the running ones %v", o.server, pids)
			}
			if got := query(t, s.URL("postgres"), `SELECT 'alive'`); got != "alive" {
				t.Errorf("new server answers %q, want alive", got)
			}
		})
	}
}

func TestTheServerDiesWithItsOwner(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	o := startOwner(t, dir, false)
	o.kill(t)
	waitUntil(t, "no process works in the data directory", func() bool {
		return len(serverProcesses(filepath.Join(dir, "pgdata"))) == 0
	})
}

func TestStartEndsASessionThatOutlivedItsServer(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, Options{DataDir: dir})
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	// Busy without ever looking at its surroundings, so that it does not notice the death of the postmaster.
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), `DO $$ BEGIN LOOP NULL; END LOOP; END $$`)
		failed <- err
	}()
	session := int(conn.PgConn().PID())
	t.Cleanup(func() {
		// Should this test fail, the session would go on for ever.
		if slices.Contains(serverProcesses(filepath.Join(dir, "pgdata")), session) {
			_ = syscall.Kill(session, syscall.SIGKILL)
		}
	})
	waitUntil(t, "the session works", func() bool {
		return query(t, s.URL("postgres"), fmt.Sprintf(`SELECT count(*)::text FROM pg_stat_activity WHERE pid = %d AND state = 'active'`, session)) == "1"
	})
	s.kill()
	if err := s.Stop(t.Context()); err != nil {
		t.Fatalf("Stop of a killed server = %v, want nil", err)
	}
	if !slices.Contains(serverProcesses(filepath.Join(dir, "pgdata")), session) {
		t.Fatal("the session has ended with its server: the test proves nothing")
	}
	s = start(t, Options{DataDir: dir})
	if err := <-failed; err == nil {
		t.Error("the old session went on after the new start")
	}
	if slices.Contains(serverProcesses(filepath.Join(dir, "pgdata")), session) {
		t.Error("the old session is still running")
	}
	if got := query(t, s.URL("postgres"), `SELECT 'alive'`); got != "alive" {
		t.Errorf("new server answers %q, want alive", got)
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
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = foreign.Wait() // it is killed in the end
	}()
	defer func() {
		_ = foreign.Process.Kill()
		<-ended
	}()
	_, rest, _ := strings.Cut(string(lock), "\n")
	stale := strconv.Itoa(foreign.Process.Pid) + "\n" + rest
	if err := os.WriteFile(filepath.Join(dir, "pgdata", "postmaster.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, Options{DataDir: dir})
	select {
	case <-ended:
		t.Error("foreign process ended during Start")
	default:
	}
}

func TestExitedTellsOfADeath(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: dataDir(t)})
	if err := syscall.Kill(s.PID(), syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.EPERM) {
		t.Fatal(err)
	}
	<-s.Exited()
	for range 2 {
		if err := s.Stop(t.Context()); err != nil {
			t.Errorf("Stop of a server that has ended = %v, want nil", err)
		}
	}
}
