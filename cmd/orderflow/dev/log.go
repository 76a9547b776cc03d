package dev

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/orderflow-dev/orderflow/internal/telemetry"
)

// maxLog is the size from which a start puts the log aside and begins another one.
const maxLog = 16 << 20

// openLog returns a log to dev.log in the data folder. Errors go to the user as well, or everything does.
func openLog(opts Options) (*slog.Logger, *os.File, error) {
	path := filepath.Join(opts.DataDir, "dev.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, nil, fmt.Errorf("put the old log aside: %w", err)
		}
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the log: %w", err)
	}
	level := opts.LogLevel
	toFile, err := telemetry.NewLog(file, telemetry.LogOptions{Level: level})
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	if !opts.Verbose {
		level = "error"
	}
	toUser, err := telemetry.NewLog(opts.Err, telemetry.LogOptions{Level: level})
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	return slog.New(slog.NewMultiHandler(toFile.Handler(), toUser.Handler())), file, nil
}
