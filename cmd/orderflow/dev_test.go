package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/dev"
	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/migrations"
)

// These tests start whole systems, so they are few and run one after the other.

const startLimit = 2 * time.Minute // a download of Postgres and a busy machine included

// waitReady reads the ready file once process pid has written it.
func waitReady(t *testing.T, path string, pid int, ended <-chan struct{}, output func() string) dev.Ready {
	t.Helper()
	limit := time.After(startLimit)
	for {
		raw, err := os.ReadFile(path)
		if err == nil {
			var ready dev.Ready
			if err := json.Unmarshal(raw, &ready); err != nil {
				t.Fatalf("ready file %s: %v", raw, err)
			}
			if ready.PID == pid {
				return ready
			}
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
	ready := waitReady(t, readyFile, os.Getpid(), ended, out.String)
	if !strings.Contains(out.String(), "initdb") {
		t.Errorf("a first start does not say that it fills the data folder:\n%s", out.String())
	}
	for _, service := range []string{"relay", "order", "email", "warehouse"} {
		wantMetrics(t, service, ready.Ops[service])
		if !strings.Contains(out.String(), ready.Ops[service]+"/metrics") {
			t.Errorf("dev does not say where the metrics of %s are:\n%s", service, out.String())
		}
	}
	wantMetrics(t, "sandbox", ready.Sandbox)
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

func wantMetrics(t *testing.T, service, base string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		resp, err := client.Get(base + path)
		if err != nil {
			t.Errorf("%s of %s: %v", path, service, err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s of %s = %s, want 200", path, service, resp.Status)
		}
	}
}

// A script that waits for the ready file of a new run must not find that of a killed one.
func TestDevRemovesTheReadyFilesOfAKilledRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stale := []string{filepath.Join(dir, "ready.json"), filepath.Join(t.TempDir(), "mine.json")}
	for _, path := range stale {
		if err := os.WriteFile(path, []byte(`{"pid":1}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It never becomes ready, so nothing but its start can remove them.
	got := orderflow(t.Context(), "dev", "--data-dir", dir, "--ready-file", stale[1], "--pg-url", "postgres://me@"+unused(t)+"/x")
	if got.code != exitUnreachable {
		t.Errorf("dev on a Postgres that is not there = exit %d, want %d: %s", got.code, exitUnreachable, got.stderr)
	}
	for _, path := range stale {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the stale %s is still there (%v)", path, err)
		}
	}
}

func TestDevOnAMigratedPostgresWithOtherPasswordsSaysWhatToDo(t *testing.T) {
	t.Parallel()
	password := "of-a-real-system"
	server, err := localpg.Start(t.Context(), localpg.Options{DataDir: openFolder(t), NoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop(context.WithoutCancel(t.Context())) })
	url := server.URL("postgres")
	if err := migrations.Up(t.Context(), url, migrations.Options{RolePassword: password}); err != nil {
		t.Fatal(err)
	}
	got := orderflow(t.Context(), "dev", "--data-dir", openFolder(t), "--pg-url", url, "--seed-orders", "0")
	if got.code != exitConflict || !strings.Contains(got.stderr, "orderflow migrate --dev") {
		t.Errorf("dev = exit %d, %s; want %d and what to do", got.code, got.stderr, exitConflict)
	}
	role, err := migrations.RoleURL(url, "orders", password)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), role)
	if err != nil {
		t.Fatalf("the role's own password after dev: %v; want it untouched", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var keys int
	owner, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Close(context.WithoutCancel(t.Context())) }()
	if err := owner.QueryRow(t.Context(), `SELECT count(*) FROM orders.api_keys`).Scan(&keys); err != nil || keys != 0 {
		t.Errorf("api keys after dev = %d, %v; want none added", keys, err)
	}

	// A database that is not migrated may become one, and dev says what that does to the server.
	if _, err := owner.Exec(t.Context(), `CREATE DATABASE fresh`); err != nil {
		t.Fatal(err)
	}
	s := serveInBackground(t, "dev", "--data-dir", openFolder(t), "--pg-url", server.URL("fresh"), "--kafka", unused(t))
	s.says("gives the roles of your server the public development password")
	s.interrupt()
}

// openFolder returns a folder that Postgres' own user can enter when the tests run as root.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEphemeralWinsOverTheDataFolderOfTheEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"the environment names a folder for many commands", nil, exitUnreachable},
		{"the command line contradicts itself", []string{"--data-dir", t.TempDir()}, exitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "kept")
			t.Setenv("ORDERFLOW_DATA_DIR", dir)
			args := append([]string{"dev", "--ephemeral", "--pg-url", "postgres://me@" + unused(t) + "/x"}, tc.args...)
			if got := orderflow(t.Context(), args...); got.code != tc.code {
				t.Errorf("exit %d, %s; want %d", got.code, got.stderr, tc.code)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the folder of the environment was touched (%v)", err)
			}
		})
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
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.ended })
	p.ready = waitReady(t, readyFile, p.cmd.Process.Pid, p.ended, p.out.String)
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
	dir := openFolder(t)
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
