package system

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is one running orderflow process. It is ended with the test at the latest.
type Process struct {
	args []string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	err  error         // how it ended, once done is closed

	mu     sync.Mutex
	killed bool // or excused: it need not end well
}

// Start starts a process that serves until it is stopped. What it says goes to a file, and into the test's log if the test
// fails.
func (b *Binary) Start(t testing.TB, args ...string) *Process {
	t.Helper()
	p := &Process{args: args, done: make(chan struct{}), log: filepath.Join(t.TempDir(), "log")}
	file, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() // the process has its own
	p.cmd = exec.Command(b.Path, args...)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	// A group of its own, so that a Ctrl-C for the test is not one for the process; and it dies with the test binary.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(p.cmd.SysProcAttr)
	p.cmd.Env = environment()
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		t.Fatalf("start orderflow %v: %v", args, err)
	}
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("orderflow %s said:\n%s", strings.Join(args, " "), tail(p.log))
		}
	})
	return p
}

// environment is that of the test, where a data race ends the program. The race detector would have every process sleep for a
// second before it ends.
func environment() []string {
	return append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0")
}

// run starts the process and waits for its end, on one OS thread that it keeps for itself all the while: the kernel's
// parent-death signal is tied to the thread, and Go may end a thread that nothing is locked to.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// Kill ends the process as kill -9 does. The process has no say in it.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	p.excuse()
	_ = p.cmd.Process.Kill() // it may have ended by itself, which the caller's checks will tell
	p.wait(t, 40*time.Second)
}

// excuse says that the process need not end well.
func (p *Process) excuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killed = true
}

// Stop asks the process to stop, waits until it has, and fails the test if it did not end well.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	killed := p.killed
	p.mu.Unlock()
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		p.wait(t, 40*time.Second)
	}
	if p.err != nil && !killed {
		t.Errorf("orderflow %s ended with %v\n%s", strings.Join(p.args, " "), p.err, tail(p.log))
	}
}

func (p *Process) wait(t testing.TB, limit time.Duration) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its stacks say what it waits for
		<-p.done
		t.Errorf("orderflow %s did not end in %v\n%s", strings.Join(p.args, " "), limit, tail(p.log))
	}
}

// Ended reports whether the process has ended, and how.
func (p *Process) Ended() (bool, error) {
	select {
	case <-p.done:
		return true, p.err
	default:
		return false, nil
	}
}

// Said waits until the process logs a message, and returns one of its attributes.
func (p *Process) Said(t testing.TB, message, attribute string) (value string) {
	t.Helper()
	Eventually(t, time.Minute, fmt.Sprintf("orderflow %s logs %q", strings.Join(p.args, " "), message), func() error {
		raw, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(raw) {
			var said map[string]any
			if json.Unmarshal(line, &said) == nil && said["msg"] == message {
				value, _ = said[attribute].(string)
				return nil
			}
		}
		if ended, err := p.Ended(); ended {
			t.Fatalf("orderflow %s ended: %v\n%s", strings.Join(p.args, " "), err, raw)
		}
		return errors.New("it has not")
	})
	return value
}

// Log returns the end of what the process has said.
func (p *Process) Log() string { return tail(p.log) }

func tail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("(%v)", err)
	}
	const most = 24 << 10
	if len(raw) > most {
		return "…" + string(raw[len(raw)-most:])
	}
	return string(raw)
}
