package system

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	killed bool
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
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66")
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start orderflow %v: %v", args, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("orderflow %s said:\n%s", strings.Join(args, " "), tail(p.log))
		}
	})
	return p
}

// Kill ends the process as kill -9 does. The process has no say in it.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	_ = p.cmd.Process.Kill() // it may have ended by itself, which the caller's checks will tell
	p.wait(t, 10*time.Second)
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
