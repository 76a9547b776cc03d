package localpg

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is what [Download] fetches. The folder name carries it, so a newer one is fetched beside it.
const downloadVersion = embeddedpostgres.V17

// Download fetches Postgres binaries (some 30 MB) into the user's cache, /var/cache/orderflow for root, and returns them.
// A later call finds them there. The archive's checksum is verified.
func Download(ctx context.Context) (Binaries, error) {
	final := filepath.Join(cacheDir(), "pg-"+string(downloadVersion))
	if b, err := inspect(ctx, filepath.Join(final, "bin")); err == nil {
		return b, nil
	}
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return Binaries{}, fmt.Errorf("make the cache folder for Postgres: %w", err)
	}
	// Unpacked beside its final place and renamed: a download that was cut off leaves nothing that looks complete.
	tmp, err := os.MkdirTemp(cacheDir(), "download-")
	if err != nil {
		return Binaries{}, fmt.Errorf("make a folder for the download: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := fetch(ctx, tmp); err != nil {
		return Binaries{}, err
	}
	unpacked := filepath.Join(tmp, "pg")
	if _, err := inspect(ctx, filepath.Join(unpacked, "bin")); err != nil {
		return Binaries{}, fmt.Errorf("check downloaded Postgres %s: %w", downloadVersion, err)
	}
	if err := os.Chmod(unpacked, 0o755); err != nil {
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
// server in its own way and never as root. So it is given a data directory that looks initialised but is not: it unpacks,
// fails to start, and what counts is whether the binaries are there.
func fetch(ctx context.Context, tmp string) error {
	data := filepath.Join(tmp, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make a folder for the download: %w", err)
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(string(downloadVersion)), 0o600); err != nil {
		return fmt.Errorf("prepare the download: %w", err)
	}
	port, err := freePort()
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
	failed := make(chan error, 1)
	go func() { failed <- embeddedpostgres.NewDatabase(config).Start() }()
	select {
	case err = <-failed:
	case <-ctx.Done():
		<-failed // it cannot be interrupted, and it writes into tmp, which the caller deletes
		return fmt.Errorf("download Postgres %s: %w", downloadVersion, ctx.Err())
	}
	if _, statErr := os.Stat(filepath.Join(tmp, "pg", "bin", "postgres")); statErr != nil {
		return fmt.Errorf("download Postgres %s: %w", downloadVersion, err)
	}
	return nil
}
