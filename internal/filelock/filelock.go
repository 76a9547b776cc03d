// Package filelock keeps a file, and what it stands for, to one process at a time.
package filelock

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ErrHeld is returned by [TryLock] while somebody else has the lock.
var ErrHeld = errors.New("locked by another process")

// TryLock takes the lock of an open file, or returns [ErrHeld] at once. It lasts until [Close], or until this process
// ends, however it ends.
func TryLock(file *os.File) error {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", file.Name(), ErrHeld)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return nil
}

// Close gives the lock back and closes the file. Closing alone would not do: a process that is just being started has a
// copy of the open file until it executes its program, and the lock would last until then.
func Close(file *os.File) error {
	return errors.Join(syscall.Flock(int(file.Fd()), syscall.LOCK_UN), file.Close())
}
