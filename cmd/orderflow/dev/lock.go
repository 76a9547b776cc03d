package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

// InUse is the error of [Run] on a folder that another process uses.
type InUse struct {
	DataDir string
	PID     int       // 0 when the holder has not said
	Since   time.Time // when the holder started
}

func (e *InUse) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("another orderflow dev uses %s", e.DataDir)
	}
	return fmt.Sprintf("another orderflow dev uses %s: process %d, since %s (%s ago)",
		e.DataDir, e.PID, e.Since.Local().Format("2006-01-02 15:04:05"), time.Since(e.Since).Round(time.Second))
}

type holder struct {
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

// lockDataDir makes the folder and takes its lock. The kernel drops the lock when this process ends, however it ends.
func lockDataDir(dir string) (*os.File, error) {
	// Postgres does not run as root, and its own user must be able to enter. What is private below is closed itself.
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as said
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data folder: %w", err)
	}
	if err := filelock.TryLock(file); err != nil {
		defer file.Close()
		if !errors.Is(err, filelock.ErrHeld) {
			return nil, err
		}
		inUse := &InUse{DataDir: dir}
		var by holder
		if raw, err := io.ReadAll(file); err == nil && json.Unmarshal(raw, &by) == nil {
			inUse.PID, inUse.Since = by.PID, by.Since
		}
		return nil, inUse
	}
	raw, err := json.Marshal(holder{PID: os.Getpid(), Since: time.Now().UTC()})
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	if err := errors.Join(file.Truncate(0), writeAt(file, append(raw, '\n'))); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return file, nil
}

func writeAt(file *os.File, b []byte) error {
	_, err := file.WriteAt(b, 0)
	return err
}
