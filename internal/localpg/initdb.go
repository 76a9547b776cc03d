package localpg

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// dataMajor returns the major version that made dir, 0 when dir holds no data yet.
func dataMajor(dir string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read version of data directory: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("read version of data directory %s: %w", dir, err)
	}
	return major, nil
}

// cluster says how to make a data directory.
type cluster struct {
	binDir string
	auth   string
	sync   bool
	as     *account
}

// create makes the data directory and the superuser's password file. Both are made under another name and renamed, the
// data last: what a kill leaves behind is never taken for a whole directory.
func (c cluster) create(ctx context.Context, dataDir, passwordFile string) error {
	password := rand.Text()
	if err := os.WriteFile(passwordFile, []byte(password), 0o600); err != nil {
		return fmt.Errorf("write the superuser's password: %w", err)
	}
	if err := c.as.own(passwordFile); err != nil {
		return err
	}
	tmp := dataDir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("clear the remains of an earlier initdb: %w", err)
	}
	args := []string{"-D", tmp, "-U", superuser, "--auth=" + c.auth, "--pwfile=" + passwordFile, "--encoding=UTF8", "--locale=C"}
	if !c.sync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.binDir, "initdb"), args...)
	cmd.Dir = filepath.Dir(dataDir)
	cmd.Env = serverEnv()
	cmd.SysProcAttr = c.as.sysProcAttr()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := os.Rename(tmp, dataDir); err != nil {
		return fmt.Errorf("put the new data directory in place: %w", err)
	}
	return nil
}

// createFromCache is create by copying what an earlier create of the same kind made: 0.1 s instead of 1 s.
func (c cluster) createFromCache(ctx context.Context, cache, dataDir, passwordFile string) error {
	version, err := exec.CommandContext(ctx, filepath.Join(c.binDir, "postgres"), "--version").Output()
	if err != nil {
		return fmt.Errorf("run postgres --version: %w", err)
	}
	hash := sha256.Sum256(append(version, c.auth...))
	cached := filepath.Join(cache, "initdb-"+hex.EncodeToString(hash[:6]))
	if _, err := os.Stat(cached); err != nil {
		if err := c.create(ctx, dataDir, passwordFile); err != nil {
			return err
		}
		// The cache only saves time: a folder that cannot be written is no reason to fail.
		_ = fillCache(cached, dataDir, passwordFile)
		return nil
	}
	if err := copyTree(filepath.Join(cached, "password"), passwordFile, c.as); err != nil {
		return err
	}
	tmp := dataDir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("clear the remains of an earlier copy: %w", err)
	}
	if err := copyTree(filepath.Join(cached, "data"), tmp, c.as); err != nil {
		return err
	}
	if err := os.Rename(tmp, dataDir); err != nil {
		return fmt.Errorf("put the new data directory in place: %w", err)
	}
	return nil
}

func fillCache(cached, dataDir, passwordFile string) error {
	if err := os.MkdirAll(filepath.Dir(cached), 0o700); err != nil {
		return fmt.Errorf("make cache folder: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(cached), "initdb-new-")
	if err != nil {
		return fmt.Errorf("make cache folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := copyTree(dataDir, filepath.Join(tmp, "data"), nil); err != nil {
		return err
	}
	if err := copyTree(passwordFile, filepath.Join(tmp, "password"), nil); err != nil {
		return err
	}
	if err := os.Rename(tmp, cached); err != nil {
		return fmt.Errorf("put cache in place: %w", err) // another process was faster
	}
	return nil
}

// copyTree copies a file or folder with its permissions and gives the copy to the account.
func copyTree(from, to string, as *account) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		target := filepath.Join(to, rel)
		info, err := entry.Info()
		if err != nil {
			return fmt.Errorf("copy %s: %w", path, err)
		}
		switch {
		case entry.IsDir():
			err = os.MkdirAll(target, info.Mode().Perm())
		case info.Mode().IsRegular():
			err = copyFile(path, target, info.Mode().Perm())
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", path, err)
		}
		return as.own(target)
	})
}

func copyFile(from, to string, perm fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// serverEnv is the environment of the server's programs: nothing of the caller's, whose PG… variables would change
// what they do. TZ spares initdb a search through all time zones.
func serverEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "HOME=/"}
}
