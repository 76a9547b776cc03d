package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/dev"
)

// These tests start whole systems, so they are few and run one after the other.

const startLimit = 2 * time.Minute // a download of Postgres and a busy machine included

// waitReady reads the ready file once it is there.
func waitReady(t *testing.T, path string, ended <-chan struct{}, output func() string) dev.Ready {
	t.Helper()
	limit := time.After(startLimit)
	for {
		raw, err := os.ReadFile(path)
		if err == nil {
			var ready dev.Ready
			if err := json.Unmarshal(raw, &ready); err != nil {
				t.Fatalf("ready file %s: %v", raw, err)
			}
			return ready
		}
		select {
		case <-ended:
			t.Fatalf("orderflow dev ended before it was ready:\n%s", output())
		case <-limit:
			t.Fatalf("orderflow dev is not ready after %v:\n%s", startLimit, output())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestDevTakesAnOrderThroughEveryHop(t *testing.T) {
	readyFile := filepath.Join(t.TempDir(), "ready.json")
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	var out buffer
	code, ended := -1, make(chan struct{})
	go func() {
		defer close(ended)
		code = run(ctx, []string{"dev", "--ephemeral", "--ready-file", readyFile, "--seed-orders", "3"}, &out, &out)
	}()
	ready := waitReady(t, readyFile, ended, out.String)
	use := func(args ...string) result {
		got := orderflow(t.Context(), append(args, "--data-dir", ready.DataDir)...)
		if got.code != 0 {
			t.Errorf("orderflow %s = exit %d: %s%s", strings.Join(args, " "), got.code, got.stdout, got.stderr)
		}
		return got
	}
	var placed struct{ ID, Status string }
	created := use("orders", "create", "--random", "--wait", "--timeout", "1m", "-o", "json")
	if err := json.Unmarshal([]byte(created.stdout), &placed); err != nil {
		t.Fatalf("create printed %q: %v", created.stdout, err)
	}
	wantTimeline(t, placed.ID, func() string { return use("orders", "timeline", placed.ID).stdout })
	if got := use("orders", "list", "-o", "jsonl").stdout; strings.Count(got, "\n") != 4 {
		t.Errorf("list printed %q, want the 3 seeded orders and the placed one", got)
	}
	for _, group := range []string{"order", "email", "warehouse"} {
		if got := use("groups", "list").stdout; !strings.Contains(got, group) {
			t.Errorf("groups list lacks %s: %s", group, got)
		}
		use("groups", "describe", group)
	}
	if got := use("dlq", "list").stdout; got != "nothing is parked\n" {
		t.Errorf("dlq list = %q, want nothing", got)
	}
	use("load", "--rate", "50", "--orders", "20", "--declines", "0.2")
	if got := orderflow(t.Context(), "migrate", "status", "--database-url", ready.Postgres, "--kafka", ready.Kafka); got.code != 0 {
		t.Errorf("migrate status = exit %d, want everything up to date: %s%s", got.code, got.stdout, got.stderr)
	}

	stop()
	<-ended
	if code != 0 {
		t.Errorf("orderflow dev = exit %d after an interrupt, want 0:\n%s", code, out.String())
	}
	for _, path := range []string{readyFile, ready.DataDir} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the end %s is still there (%v)", path, err)
		}
	}
}

// wantTimeline waits until the order's timeline shows every hop up to the mail about its shipment.
func wantTimeline(t *testing.T, id string, timeline func() string) {
	t.Helper()
	hops := []string{
		"placed", "order.placed.v1 written", "order.placed.v1 published", "topic orders, partition", "reserve stock", "charge payment",
		"complete order", "order.completed.v1 published", "confirmation sent",
		"shipment created", "shipment.created.v1 published", "shipped sent",
	}
	limit := time.After(time.Minute)
	for {
		shown, missing := timeline(), ""
		for _, hop := range hops {
			if !strings.Contains(shown, hop) {
				missing = hop
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-limit:
			t.Fatalf("timeline of %s lacks %q:\n%s", id, missing, shown)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// process is an `orderflow dev` with a process of its own.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   buffer
	ended chan struct{}
	ready dev.Ready
}

// startDev starts the system of a data folder and waits until it is ready.
func startDev(t *testing.T, dir string) *process {
	t.Helper()
	p := &process{t: t, cmd: command(t, "dev", "--data-dir", dir, "--seed-orders", "2"), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	readyFile := filepath.Join(dir, "ready.json")
	if err := os.Remove(readyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.ended })
	p.ready = waitReady(t, readyFile, p.ended, p.out.String)
	return p
}

// end sends a signal and returns the exit code.
func (p *process) end(signal syscall.Signal) int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.t.Fatal(err)
	}
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

func TestDevContinuesWhereItsLastRunEnded(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // Postgres runs as another user when the tests run as root
		t.Fatal(err)
	}
	use := func(args ...string) result { return orderflow(t.Context(), append(args, "--data-dir", dir)...) }

	first := startDev(t, dir)
	if got := use("dev"); got.code != exitConflict || !strings.Contains(got.stderr, "process") {
		t.Errorf("a second dev on the folder = exit %d, %q; want %d and who holds it", got.code, got.stderr, exitConflict)
	}
	placed := use("orders", "create", "--random", "-o", "json")
	var o struct{ ID string }
	if err := json.Unmarshal([]byte(placed.stdout), &o); err != nil {
		t.Fatalf("create = exit %d: %s%s", placed.code, placed.stdout, placed.stderr)
	}
	first.end(syscall.SIGKILL)
	if got := use("orders", "list"); got.code != exitUnreachable {
		t.Errorf("list after kill -9 = exit %d, %q; want %d: the ready file is stale", got.code, got.stderr, exitUnreachable)
	}

	second := startDev(t, dir)
	got := use("orders", "get", o.ID, "--wait", "--timeout", "1m")
	if got.code != 0 || !(strings.Contains(got.stdout, "completed") || strings.Contains(got.stdout, "shipped")) {
		t.Errorf("the order from before the kill = exit %d: %s%s; want it completed", got.code, got.stdout, got.stderr)
	}
	wantTimeline(t, o.ID, func() string { return use("orders", "timeline", o.ID).stdout })
	if code := second.end(syscall.SIGINT); code != 0 {
		t.Errorf("dev = exit %d after Ctrl-C, want 0:\n%s", code, second.out.String())
	}

	// The broker's log is torn: the outboxes fill it again, and nobody gets a second mail.
	if err := os.Truncate(filepath.Join(dir, "kafka", "topics.json"), 10); err != nil {
		t.Fatal(err)
	}
	third := startDev(t, dir)
	if !strings.Contains(third.out.String(), "torn") {
		t.Errorf("dev with a torn log says nothing of it:\n%s", third.out.String())
	}
	wantTimeline(t, o.ID, func() string { return use("orders", "timeline", o.ID).stdout })
	wantNoLag(t, func() string { return use("groups", "list", "-o", "json").stdout })
	if shown := use("orders", "timeline", o.ID).stdout; strings.Count(shown, "confirmation sent") != 1 || strings.Count(shown, " shipment created ") != 1 {
		t.Errorf("after the log was filled again the timeline shows other effects than one mail and one shipment:\n%s", shown)
	}
	if code := third.end(syscall.SIGINT); code != 0 {
		t.Errorf("dev = exit %d after Ctrl-C, want 0:\n%s", code, third.out.String())
	}
}

// wantNoLag waits until the three groups have read everything.
func wantNoLag(t *testing.T, list func() string) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		var groups []groupDoc
		shown := list()
		read := json.Unmarshal([]byte(shown), &groups) == nil && len(groups) == 3
		for _, g := range groups {
			read = read && g.Lag != nil && *g.Lag == 0
		}
		if read {
			return
		}
		select {
		case <-limit:
			t.Fatalf("the groups have not read everything: %s", shown)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
