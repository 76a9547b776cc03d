package localpg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Options says which server to start.
type Options struct {
	// DataDir is the folder that the server keeps its data, log, lock and superuser password in. Created when missing.
	DataDir string
	// Port is the TCP port on 127.0.0.1. 0 chooses a free one.
	Port int
	// AnyPort makes Port a wish: another one is chosen when it is taken. It is looked at after an orphan on it has been
	// ended, so that a restart gets the same port again.
	AnyPort bool
	// BinDir is the folder with postgres and initdb. Empty: the newest installed version that fits the data (see [Find]),
	// else a download (see [Download]).
	BinDir string
	// NoFsync trades the data for speed: a crash of the machine loses it. A crash of the server does not.
	NoFsync bool
	// Auth is how clients prove themselves, a method of pg_hba.conf. Default scram-sha-256. Tests choose md5, whose
	// log-ins are some 10 ms cheaper.
	Auth string
	// InitCache is a folder that keeps a freshly initialised directory to copy, which is faster than initdb. Servers
	// made from one cache share password and system identifier. Empty: none.
	InitCache string
	// Parameters are server settings, as in postgresql.conf.
	Parameters map[string]string
	// StartTimeout bounds the wait for the server, crash recovery included. Default 60 s.
	StartTimeout time.Duration
	// Log receives what is worth knowing. Default: nothing. The server's own log is <DataDir>/postgres.log.
	Log *slog.Logger
	// Progress is told of work that can take a while before it begins: a download, the first filling of the data folder.
	// Default: nobody.
	Progress func(what string)

	// outlive keeps the server alive when its owner dies, as on systems that cannot tie the two together.
	outlive bool
}

func (o Options) withDefaults() (Options, error) {
	if o.DataDir == "" {
		return o, errors.New("start Postgres: Options.DataDir is empty")
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return o, fmt.Errorf("start Postgres in %s: %w", o.DataDir, err)
	}
	o.DataDir = dir
	if o.Auth == "" {
		o.Auth = "scram-sha-256"
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o, nil
}

// binaries settles which server program to run: it must be of the version that made the data.
func (o Options) binaries(ctx context.Context, major int, as *account) (Binaries, error) {
	b, err := o.resolve(ctx, major)
	if err != nil {
		return Binaries{}, err
	}
	if major > 0 && b.Major != major {
		return Binaries{}, fmt.Errorf("open %s: its data was made by Postgres %d, the binaries in %s are version %d; install Postgres %d, or move the folder away to start empty",
			o.DataDir, major, b.Dir, b.Major, major)
	}
	return b, as.reach(b.Dir)
}

func (o Options) resolve(ctx context.Context, major int) (Binaries, error) {
	if o.BinDir != "" {
		return inspect(ctx, o.BinDir)
	}
	b, err := Find(ctx, major)
	if !errors.Is(err, ErrNoBinaries) {
		return b, err
	}
	if major > 0 && major != downloadMajor {
		return b, fmt.Errorf("open %s: its data was made by Postgres %d: %w; install that version, or move the folder away to start empty", o.DataDir, major, err)
	}
	o.Log.InfoContext(ctx, "no postgres is installed, using a downloaded one")
	b, err = downloader{cache: cacheDir(), progress: o.Progress}.download(ctx)
	if err != nil {
		return b, fmt.Errorf("%w: install Postgres %d or newer, or name a running one, or allow a download (it failed: %w)", ErrNoBinaries, MinMajor, err)
	}
	return b, nil
}

func (o Options) args(pgdata string, port int) []string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"log_timezone":            "UTC",
		"timezone":                "UTC",
	}
	if o.NoFsync {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	if o.Auth == "md5" {
		settings["password_encryption"] = "md5"
	}
	maps.Copy(settings, o.Parameters)
	args := []string{"-D", pgdata, "-p", strconv.Itoa(port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "--"+name+"="+settings[name])
	}
	return args
}
