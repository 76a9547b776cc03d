package system

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Ready is what a development system says of itself once it is up.
type Ready struct {
	API      string `json:"api"`
	APIKey   string `json:"api_key"`
	Postgres string `json:"postgres"`
	Kafka    string `json:"kafka"`
	Redis    string `json:"redis"`
	SMTP     string `json:"smtp"`
	Sandbox  string `json:"sandbox"`
	DataDir  string `json:"data_dir"`
	// Ops are the base URLs of the services' health and metrics.
	Ops map[string]string `json:"ops"`
}

// Dev is a running development system.
type Dev struct {
	*Process
	*Client
	Binary *Binary
	Ready  Ready
	DB     *pgxpool.Pool // as the owner of everything
}

// StartDev runs orderflow dev with args and returns once it is ready.
func (b *Binary) StartDev(t testing.TB, args ...string) *Dev {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ready.json")
	args = append([]string{"dev", "--ready-file", file}, args...)
	d := &Dev{Process: b.Start(t, args...), Binary: b}
	Eventually(t, 3*time.Minute, "orderflow dev is ready", func() error {
		if ended, err := d.Ended(); ended {
			if !strings.Contains(d.Log(), "address already in use") {
				t.Fatalf("orderflow dev ended before it was ready: %v\n%s", err, d.Log())
			}
			d.excuse() // a port that args insist on is somebody else's for the moment
			d.Process = b.Start(t, args...)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &d.Ready)
	})
	d.Client = NewClient(d.Ready.API, d.Ready.APIKey, d.Ready.Sandbox)
	t.Cleanup(d.Client.Close)
	d.DB = OpenDB(t, d.Ready.Postgres)
	return d
}

// DataDir returns a folder that is removed with the test. Unlike one of [testing.T.TempDir] it lets the user in that Postgres
// runs as when the test runs as root.
func DataDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "orderflow-data-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// OpenDB connects as the owner. The pool is closed with the test.
func OpenDB(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 6
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Kafka returns a client of the broker at addrs. It is closed with the test.
func Kafka(t testing.TB, addrs string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addrs)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// Eventually calls check until it returns nil, and fails the test with its last error when limit has passed.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	if err := Await(t.Context(), limit, check); err != nil {
		t.Fatalf("not within %v: %s: %v", limit, what, err)
	}
}

// Await calls check until it returns nil, or returns its last error when limit has passed.
func Await(ctx context.Context, limit time.Duration, check func() error) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for pause := 5 * time.Millisecond; ; pause = min(pause*2, 100*time.Millisecond) {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-deadline.C:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}
