package localkafka

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

// ErrInUse is returned by [Start] while another owner has a cluster on the same directory.
var ErrInUse = errors.New("in use by another process")

// made says who made a data directory. It is written once all of it is formatted.
type made struct {
	Version   string `json:"kafka_version"`
	Brokers   int    `json:"brokers"`
	ClusterID string `json:"cluster_id"`
}

func madeFile(dir string) string { return filepath.Join(dir, "cluster.json") }

// readMade returns who made the data in dir, nil when there is none yet.
func readMade(dir string) (*made, error) {
	raw, err := os.ReadFile(madeFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	var m made
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("open data directory: read %s: %w; remove %s to start empty", madeFile(dir), err, dir)
	}
	return &m, nil
}

// fits reports why opts cannot go on with the data.
func (m *made) fits(opts Options) error {
	if m.Version != Version() {
		return fmt.Errorf("open %s: its data was made by Kafka %s, this is %s; move the folder away, or remove it to start empty", opts.DataDir, m.Version, Version())
	}
	if m.Brokers != opts.Brokers {
		return fmt.Errorf("open %s: its data belongs to %d brokers, not %d; start as many, choose another folder, or remove it to start empty", opts.DataDir, m.Brokers, opts.Brokers)
	}
	return nil
}

func (m *made) write(dir string) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = os.WriteFile(madeFile(dir), append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note who made the data directory: %w", err)
	}
	return nil
}

// lockDir makes the folder and takes the owner's lock. The kernel drops it when the owner ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of data directory: %w", err)
	}
	if err := filelock.TryLock(lock); err != nil {
		_ = lock.Close()
		if errors.Is(err, filelock.ErrHeld) {
			return nil, fmt.Errorf("data directory %s: %w; use the cluster that runs there, end it, or choose another folder", dir, ErrInUse)
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return lock, nil
}

// randomID returns a cluster id as Kafka makes them.
func randomID() (string, error) {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make a cluster id: %w", err)
	}
	raw[0] &= 0x7f // an id that began with a dash would read as a flag
	return base64.RawURLEncoding.EncodeToString(raw), nil
}
