package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Binary is the program under test.
type Binary struct {
	Path string
	dir  string
}

// Build builds ./cmd/orderflow with the race detector. The caller removes it.
func Build(ctx context.Context) (*Binary, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "orderflow-test-")
	if err != nil {
		return nil, fmt.Errorf("folder for the binary: %w", err)
	}
	b := &Binary{Path: filepath.Join(dir, "orderflow"), dir: dir}
	cmd := exec.CommandContext(ctx, "go", "build", "-race", "-o", b.Path, "./cmd/orderflow")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("build orderflow: %w\n%s", err, out), b.Remove())
	}
	return b, nil
}

// Remove deletes the binary.
func (b *Binary) Remove() error { return os.RemoveAll(b.dir) }

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(string(bytes.TrimSpace(out))), nil
}

// Output is what a command printed, and how it ended.
type Output struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a command to its end.
func (b *Binary) Run(t testing.TB, args ...string) Output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.Path, args...)
	cmd.Env = environment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("orderflow %v: %v", args, err)
	}
	return Output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// MustRun runs a command that has to succeed.
func (b *Binary) MustRun(t testing.TB, args ...string) string {
	t.Helper()
	out := b.Run(t, args...)
	if out.Code != 0 {
		t.Fatalf("orderflow %v: exit code %d\n%s%s", args, out.Code, out.Stdout, out.Stderr)
	}
	return out.Stdout
}
