package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Ready says where the parts of a running system listen. It is the content of ready.json.
type Ready struct {
	API      string `json:"api"`      // base URL
	APIKey   string `json:"api_key"`  // of role service
	Postgres string `json:"postgres"` // the owner's URL, password included
	Kafka    string `json:"kafka"`    // host:port, comma-separated
	Redis    string `json:"redis"`    // URL
	SMTP     string `json:"smtp"`     // host:port
	Sandbox  string `json:"sandbox"`  // base URL
	// Ops are the base URLs of /healthz, /readyz and /metrics, by service. The api and the sandbox have them beside the rest.
	Ops     map[string]string `json:"ops"`
	PID     int               `json:"pid"`
	Since   time.Time         `json:"since"`
	DataDir string            `json:"data_dir"`
}

// ErrNotRunning is returned by [ReadReady] when no system runs on the folder.
var ErrNotRunning = errors.New("no orderflow dev is running")

func readyFile(dataDir string) string { return filepath.Join(dataDir, "ready.json") }

func readyFiles(opts Options) []string {
	files := []string{readyFile(opts.DataDir)}
	if opts.ReadyFile != "" {
		files = append(files, opts.ReadyFile)
	}
	return files
}

// removeStale removes what a killed run has left: a script that waits for a ready file must not find that one. The caller
// holds the folder's lock, so nobody writes them now.
func removeStale(opts Options) error {
	for _, path := range readyFiles(opts) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the ready file of an earlier run: %w", err)
		}
	}
	return nil
}

// ReadReady returns the addresses of the system that runs on dataDir. A file that a killed process left behind counts as
// none.
func ReadReady(dataDir string) (Ready, error) {
	raw, err := os.ReadFile(readyFile(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return Ready{}, ErrNotRunning
	}
	if err != nil {
		return Ready{}, fmt.Errorf("read the addresses of the running system: %w", err)
	}
	var r Ready
	if err := json.Unmarshal(raw, &r); err != nil {
		return Ready{}, fmt.Errorf("read %s: %w", readyFile(dataDir), err)
	}
	if err := syscall.Kill(r.PID, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return Ready{}, ErrNotRunning
	}
	return r, nil
}

// write puts the file at path in one step: a reader sees all of it or nothing.
func (r Ready) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ") //nolint:gosec // keys and passwords are what the file is for; it is private
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ready-*") // mode 0600: it holds passwords
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(append(raw, '\n'))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
