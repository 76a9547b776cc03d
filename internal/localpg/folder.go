package localpg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

const memory = "/dev/shm"

// Scratch returns the best folder for data that nobody will keep: in memory where there is enough of it (Linux, 2 GiB), else
// the folder for temporary files. A database is some thousand small files; making and deleting them on a disk takes a
// second.
func Scratch() string {
	var fs syscall.Statfs_t
	const write = 2
	if syscall.Statfs(memory, &fs) == nil && fs.Bavail*uint64(fs.Bsize) >= 2<<30 && syscall.Access(memory, write) == nil {
		return memory
	}
	return os.TempDir()
}

func prepareDir(dir string, as *account) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // parents that another user must pass through
		return fmt.Errorf("make data directory: %w", err)
	}
	if err := as.own(dir); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a folder, which needs the x
		return fmt.Errorf("close data directory to others: %w", err)
	}
	return as.reach(dir)
}

// lockDir takes the owner's lock. The kernel drops it when the owner ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of data directory: %w", err)
	}
	if err := filelock.TryLock(lock); err != nil {
		_ = lock.Close()
		if errors.Is(err, filelock.ErrHeld) {
			return nil, fmt.Errorf("data directory %s: %w", dir, ErrInUse)
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return lock, nil
}

// maxLog is how large the server's log may be at a start; a larger one is put aside.
const maxLog = 16 << 20

// openLog opens the server's log at its end, and says where that is.
func openLog(dir string) (*os.File, int64, error) {
	path := filepath.Join(dir, "postgres.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, 0, fmt.Errorf("put the old Postgres log aside: %w", err)
		}
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("open Postgres log: %w", err)
	}
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		_ = file.Close()
		return nil, 0, fmt.Errorf("open Postgres log: %w", err)
	}
	return file, end, nil
}
