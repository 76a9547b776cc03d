package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MinMajor is the oldest major version of Postgres that orderflow works with.
const MinMajor = 15

// ErrNoBinaries is returned by [Find] when no suitable Postgres server is installed.
var ErrNoBinaries = errors.New("no Postgres server binaries found")

// Binaries is a folder with postgres and initdb, and the major version they are of.
type Binaries struct {
	Dir   string
	Major int
}

// Find returns the newest installed Postgres of at least [MinMajor]. With major > 0 only that version will do, because a
// data directory can be opened by the version that made it and no other. It looks on PATH and in the folders where
// distributions and Homebrew put servers, not at earlier downloads: what is installed is kept up to date by somebody.
func Find(ctx context.Context, major int) (Binaries, error) {
	var found []Binaries
	for _, dir := range candidateDirs() {
		b, err := inspect(ctx, dir)
		if err != nil || b.Major < MinMajor || (major > 0 && b.Major != major) {
			continue
		}
		found = append(found, b)
	}
	if len(found) == 0 {
		if major > 0 {
			return Binaries{}, fmt.Errorf("version %d: %w", major, ErrNoBinaries)
		}
		return Binaries{}, ErrNoBinaries
	}
	return slices.MaxFunc(found, func(a, b Binaries) int { return a.Major - b.Major }), nil
}

func candidateDirs() []string {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	patterns := []string{
		"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                   // RHEL, Fedora (PGDG)
		"/usr/libexec/postgresql*",           // Alpine
		"/usr/local/pgsql/bin",               // built from source
		"/opt/homebrew/opt/postgresql@*/bin", // macOS, arm64
		"/usr/local/opt/postgresql@*/bin",    // macOS, amd64
	}
	for _, pattern := range patterns {
		matches, _ := filepath.Glob(pattern) // the only error is a malformed pattern
		dirs = append(dirs, matches...)
	}
	return dirs
}

// inspect asks the binary for its version, which also proves that it runs here.
func inspect(ctx context.Context, dir string) (Binaries, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return Binaries{}, fmt.Errorf("find initdb: %w", err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("run %s/postgres --version: %w", dir, err)
	}
	major, err := parseVersion(string(out))
	if err != nil {
		return Binaries{}, err
	}
	return Binaries{Dir: dir, Major: major}, nil
}

// parseVersion reads the major version of "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)" or "… 17beta1".
func parseVersion(out string) (int, error) {
	_, rest, ok := strings.Cut(out, "(PostgreSQL) ")
	if !ok {
		return 0, fmt.Errorf("read Postgres version from %q", strings.TrimSpace(out))
	}
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	major, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("read Postgres version from %q", strings.TrimSpace(out))
	}
	return major, nil
}

// cacheDir is where downloaded binaries stay. Root cannot keep them in its home: the user that the server runs as could
// not reach them there.
func cacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/orderflow"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "orderflow")
	}
	return filepath.Join(os.TempDir(), "orderflow-"+strconv.Itoa(os.Geteuid()))
}
