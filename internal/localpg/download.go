package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is what [Download] fetches. The folder name carries it, so a newer one is fetched beside it.
const downloadVersion = embeddedpostgres.V17

// downloadMajor is the major version of downloadVersion.
const downloadMajor = 17

// Download fetches Postgres binaries (some 30 MB) into the user's cache, /var/cache/orderflow for root, and returns them.
// A later call finds them there. The archive is checked against the checksum published with it.
func Download(ctx context.Context) (Binaries, error) {
	return downloader{cache: cacheDir(), progress: func(string) {}}.download(ctx)
}

type downloader struct {
	cache      string
	repository string // "": the default of embedded-postgres
	progress   func(what string)
}

func (d downloader) download(ctx context.Context) (Binaries, error) {
	final := filepath.Join(d.cache, "pg-"+string(downloadVersion))
	if b, err := inspect(ctx, filepath.Join(final, "bin")); err == nil {
		return b, nil
	}
	d.progress("none is installed: downloading PostgreSQL " + strconv.Itoa(downloadMajor) + ", some 30 MB, into " + d.cache)
	if err := os.MkdirAll(d.cache, 0o755); err != nil { //nolint:gosec // the server may run as another user
		return Binaries{}, fmt.Errorf("make the cache folder for Postgres: %w", err)
	}
	// Unpacked beside its final place and renamed: a download that was cut off leaves nothing that looks complete.
	tmp, err := os.MkdirTemp(d.cache, "download-")
	if err != nil {
		return Binaries{}, fmt.Errorf("make a folder for the download: %w", err)
	}
	fetched := make(chan struct{})
	go func() {
		defer close(fetched)
		err = d.fetch(ctx, tmp)
	}()
	select {
	case <-ctx.Done():
		// The fetch cannot be interrupted; what it leaves is removed when it ends, or by the next download.
		go func() {
			<-fetched
			_ = os.RemoveAll(tmp)
		}()
		return Binaries{}, fmt.Errorf("download Postgres %s: %w", downloadVersion, ctx.Err())
	case <-fetched:
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err != nil {
		return Binaries{}, err
	}
	unpacked := filepath.Join(tmp, "pg")
	if _, err := inspect(ctx, filepath.Join(unpacked, "bin")); err != nil {
		return Binaries{}, fmt.Errorf("check downloaded Postgres %s: %w", downloadVersion, err)
	}
	if err := os.Chmod(unpacked, 0o755); err != nil { //nolint:gosec // the server may run as another user
		return Binaries{}, fmt.Errorf("open the downloaded Postgres to other users: %w", err)
	}
	if err := os.Rename(unpacked, final); err != nil {
		// Another process was faster; its copy is as good.
		if b, inspectErr := inspect(ctx, filepath.Join(final, "bin")); inspectErr == nil {
			return b, nil
		}
		return Binaries{}, fmt.Errorf("keep the downloaded Postgres: %w", err)
	}
	return inspect(ctx, filepath.Join(final, "bin"))
}

// fetch has embedded-postgres download and unpack into tmp/pg. Its Start is the only way in, and would go on to run the
// server in its own way and never as root. So it is given a data directory that looks initialised and is not: it unpacks,
// fails to start, and what counts is whether the binaries are there.
func (d downloader) fetch(ctx context.Context, tmp string) error {
	data := filepath.Join(tmp, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make a folder for the download: %w", err)
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(strconv.Itoa(downloadMajor)), 0o600); err != nil {
		return fmt.Errorf("prepare the download: %w", err)
	}
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	config := embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		Port(uint32(port)).
		CachePath(filepath.Join(tmp, "archive")).
		RuntimePath(filepath.Join(tmp, "runtime")).
		BinariesPath(filepath.Join(tmp, "pg")).
		DataPath(data).
		Logger(io.Discard)
	if d.repository != "" {
		config = config.BinaryRepositoryURL(d.repository)
	}
	logs := startLogs()
	err = embeddedpostgres.NewDatabase(config).Start()
	for _, path := range startLogs() {
		if !slices.Contains(logs, path) {
			_ = os.Remove(path) // litter at worst
		}
	}
	if _, statErr := os.Stat(filepath.Join(tmp, "pg", "bin", "postgres")); statErr == nil {
		return nil
	}
	if err == nil {
		err = errors.New("the archive holds no server")
	}
	return fmt.Errorf("download Postgres %s: %w", downloadVersion, err)
}

// startLogs lists the logs that embedded-postgres leaves in the folder for temporary files when a start fails.
func startLogs() []string {
	paths, _ := filepath.Glob(filepath.Join(os.TempDir(), "embedded_postgres_log*")) // the only error is a malformed pattern
	return paths
}
