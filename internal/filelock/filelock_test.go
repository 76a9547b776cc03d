package filelock

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func TestALockHasOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, second := open(t, path), open(t, path)
	if err := TryLock(first); err != nil {
		t.Fatalf("TryLock of a free file = %v, want nil", err)
	}
	if err := TryLock(second); !errors.Is(err, ErrHeld) {
		t.Fatalf("TryLock of a held file = %v, want %v", err, ErrHeld)
	}
	if err := Close(first); err != nil {
		t.Fatalf("Close = %v, want nil", err)
	}
	if err := TryLock(second); err != nil {
		t.Errorf("TryLock after Close = %v, want nil", err)
	}
}

func TestCloseFreesTheLockWhileAnotherProcessHasACopyOfTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, second := open(t, path), open(t, path)
	if err := TryLock(first); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), "cat")
	child.ExtraFiles = []*os.File{first}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := Close(first); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
	if err := TryLock(second); err != nil {
		t.Errorf("TryLock after Close = %v, want nil", err)
	}
	_ = stdin.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}
