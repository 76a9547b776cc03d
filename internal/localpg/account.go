package localpg

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the unprivileged user that a root caller's server runs as; nil means the caller's own.
type account struct {
	name     string
	uid, gid uint32
}

// serverAccount picks the account. Postgres refuses to run as root.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil || uid == 0 {
			continue
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			continue
		}
		return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("choose the user to run Postgres as: Postgres refuses to run as root, and this system has neither a user postgres nor nobody")
}

// sysProcAttr puts a command under the account and in a session of its own: Ctrl-C in a terminal reaches every process
// of the foreground group, and would end the server under the feet of services that are still finishing their work.
func (a *account) sysProcAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// own hands a file to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to user %s: %w", path, a.name, err)
	}
	return nil
}

// reach reports the first folder on the way to dir that the account may not enter.
func (a *account) reach(dir string) error {
	if a == nil {
		return nil
	}
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			return fmt.Errorf("look at %s: %w", d, err)
		}
		need := os.FileMode(0o001)
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			switch {
			case st.Uid == a.uid:
				need = 0o100
			case st.Gid == a.gid:
				need = 0o010
			}
		}
		if info.Mode().Perm()&need == 0 {
			return fmt.Errorf("use %s: Postgres runs as user %s here (it refuses to run as root), and %s may not enter %s; choose a folder elsewhere, for example under /var/lib", dir, a.name, a.name, d)
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}
