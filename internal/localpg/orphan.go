package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postmasterStatus is what a running server says of itself in its lock file, postmaster.pid.
type postmasterStatus struct {
	pid   int
	ready bool
}

func readPostmaster(dir string) (postmasterStatus, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return postmasterStatus{}, fmt.Errorf("read lock file: %w", err)
	}
	lines := strings.Split(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return postmasterStatus{}, fmt.Errorf("read pid from lock file of %s: %w", dir, err)
	}
	// The eighth line is "starting", "ready", "standby" or "stopping".
	return postmasterStatus{pid: pid, ready: len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready"}, nil
}

func readPostmasterPID(dir string) int {
	status, err := readPostmaster(dir)
	if err != nil {
		return 0
	}
	return status.pid
}

// endOrphan stops a server that an earlier owner of dir left behind. The caller holds dir's lock, so nobody else owns it.
//
// The pid in the lock file alone proves nothing: after a crash of the machine or in a new container the number belongs to
// some other process. Only processes found to be a Postgres in this very directory are signalled.
func endOrphan(ctx context.Context, dir string, log *slog.Logger) error {
	// A fast shutdown first: it leaves a clean directory. Then an immediate one, which the next start recovers from.
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGINT, 10 * time.Second}, {syscall.SIGQUIT, 5 * time.Second}, {syscall.SIGKILL, 5 * time.Second}} {
		pids := serverProcesses(dir)
		if len(pids) == 0 {
			return removeStaleLock(dir)
		}
		targets := pids
		if postmaster := readPostmasterPID(dir); slices.Contains(pids, postmaster) && step.signal != syscall.SIGKILL {
			targets = []int{postmaster} // it tells its children
		}
		log.WarnContext(ctx, "stopping the postgres server a former process left behind", "pid", targets[0])
		for _, pid := range targets {
			if err := syscall.Kill(pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop orphaned Postgres, process %d: %w", pid, err)
			}
		}
		if err := waitGone(ctx, dir, step.wait); err != nil {
			return err
		}
	}
	if pids := serverProcesses(dir); len(pids) > 0 {
		return fmt.Errorf("stop orphaned Postgres in %s: processes %v do not end", dir, pids)
	}
	return removeStaleLock(dir)
}

func waitGone(ctx context.Context, dir string, limit time.Duration) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(serverProcesses(dir)) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for orphaned Postgres to stop: %w", ctx.Err())
		case <-deadline.C:
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// removeStaleLock deletes the lock file of a server that is gone. Postgres would do so itself, unless its pid now
// belongs to another process: then it refuses to start.
func removeStaleLock(dir string) error {
	err := os.Remove(filepath.Join(dir, "postmaster.pid"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale lock file: %w", err)
	}
	return nil
}
