package dev

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRunTellsTheSecondInstanceWhoHoldsTheFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lock, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{DataDir: dir})
	var inUse *InUse
	if !errors.As(err, &inUse) {
		t.Fatalf("Run on a folder in use = %v, want InUse", err)
	}
	if inUse.PID != os.Getpid() || time.Since(inUse.Since) > time.Minute || !strings.Contains(err.Error(), dir) {
		t.Errorf("Run on a folder in use = %v, want folder, process %d and since when", err, os.Getpid())
	}
	if err := filelock.Close(lock); err != nil {
		t.Fatal(err)
	}
	again, err := lockDataDir(dir)
	if err != nil {
		t.Fatalf("lockDataDir after its holder ended = %v, want the lock", err)
	}
	_ = filelock.Close(again)
}

func TestReadReadyBelievesALivingProcessOnly(t *testing.T) {
	t.Parallel()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		pid  int // 0: there is no file
		want error
	}{
		{"nothing was ever started", 0, ErrNotRunning},
		{"the process that wrote it was killed", dead.Process.Pid, ErrNotRunning},
		{"the process that wrote it is alive", os.Getpid(), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if tc.pid != 0 {
				if err := (Ready{API: "http://x", PID: tc.pid}).write(readyFile(dir)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := ReadReady(dir)
			if !errors.Is(err, tc.want) || (err == nil && got.API != "http://x") {
				t.Errorf("ReadReady = %+v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func TestReadyFileHasTheKeysThatScriptsReadAndIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ready.json")
	if err := (Ready{API: "a", Postgres: "p"}).write(path); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"api", "api_key", "postgres", "kafka", "redis", "smtp", "sandbox", "pid"} {
		if _, ok := doc[key]; !ok {
			t.Errorf("ready.json lacks %q: %s", key, raw)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ready.json has mode %v, %v; want 0600: it holds passwords", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("folder holds %v, %v; want ready.json alone", left, err)
	}
}

func TestListenTakesAFreePortUnlessOneIsInsistedOn(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := portOf(taken)

	ln, note, err := listen(t.Context(), port, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if portOf(ln) == port || !strings.Contains(note, "taken") {
		t.Errorf("listen on a taken port = %s with note %q, want another port and a note", ln.Addr(), note)
	}
	if ln, _, err := listen(t.Context(), port, true); err == nil {
		ln.Close()
		t.Error("listen on a taken port that is insisted on: no error")
	}
}

func TestStopEndsThePartsFromTheTop(t *testing.T) {
	t.Parallel()
	s := newSystem(Options{}, discard())
	var order []string
	for _, p := range []struct {
		name  string
		layer int
	}{{"postgres", layerServer}, {"api", layerAPI}, {"relay", layerRelay}, {"email", layerConsumer}, {"sandbox", layerOutside}} {
		s.add(p.name, p.layer, func(context.Context) error { order = append(order, p.name); return nil })
	}
	if err := s.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(order, " "), "api email relay sandbox postgres"; got != want {
		t.Errorf("stop ended %s, want %s", got, want)
	}
}

func TestAPartThatEndsByItselfIsReported(t *testing.T) {
	t.Parallel()
	s := newSystem(Options{}, discard())
	broken := errors.New("broken")
	s.run(t.Context(), "email", layerConsumer, func(context.Context) error { return broken })
	err := s.await(t.Context(), "relay", "http://127.0.0.1:1/readyz")
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "email") {
		t.Errorf("await while email breaks = %v, want email's error", err)
	}
	if err := s.stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestShellQuoteKeepsAPathOneWord(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{"/var/lib/x": "/var/lib/x", "/home/a b": "'/home/a b'", "it's": `'it'\''s'`, "": "''"} {
		if got := shellQuote(path); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", path, got, want)
		}
	}
}
