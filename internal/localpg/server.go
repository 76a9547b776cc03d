package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const superuser = "postgres"

// ErrInUse is returned by [Start] while another owner has a server on the same directory.
var ErrInUse = errors.New("in use by another process")

// Options says which server to start.
type Options struct {
	// DataDir is the folder that the server keeps its data, log, lock and superuser password in. Created when missing.
	DataDir string
	// Port is the TCP port on 127.0.0.1. 0 chooses a free one.
	Port int
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

	// outlive keeps the server alive when its owner dies, as on systems that cannot tie the two together.
	outlive bool
}

// Server is a running server. Its owner calls [Server.Stop].
type Server struct {
	port     int
	password string
	version  int
	dataDir  string
	cmd      *exec.Cmd
	lock     *os.File
	exited   chan struct{}
	exitErr  error // valid once exited is closed
}

// Start starts a server and returns when it accepts connections. ctx bounds the start only; the server runs until
// [Server.Stop] or the end of this process.
func Start(ctx context.Context, opts Options) (*Server, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	as, err := serverAccount()
	if err != nil {
		return nil, err
	}
	if err := prepareDir(opts.DataDir, as); err != nil {
		return nil, err
	}
	lock, err := lockDir(opts.DataDir)
	if err != nil {
		return nil, err
	}
	s, err := startLocked(ctx, opts, as)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	s.lock = lock
	return s, nil
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
	return o, nil
}

func prepareDir(dir string, as *account) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	if err := as.own(dir); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("close data directory to others: %w", err)
	}
	return as.reach(dir)
}

// lockDir takes the owner's lock. The kernel drops it when the owner ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s: %w", dir, ErrInUse)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return lock, nil
}

func startLocked(ctx context.Context, opts Options, as *account) (*Server, error) {
	pgdata := filepath.Join(opts.DataDir, "pgdata")
	passwordFile := filepath.Join(opts.DataDir, "password")
	major, err := dataMajor(pgdata)
	if err != nil {
		return nil, err
	}
	if major > 0 {
		if err := endOrphan(ctx, pgdata, opts.Log); err != nil {
			return nil, err
		}
	}
	bin, err := opts.binaries(ctx, major, as)
	if err != nil {
		return nil, err
	}
	if major == 0 {
		c := cluster{binDir: bin.Dir, auth: opts.Auth, sync: !opts.NoFsync, as: as}
		if opts.InitCache != "" {
			err = c.createFromCache(ctx, opts.InitCache, pgdata, passwordFile)
		} else {
			err = c.create(ctx, pgdata, passwordFile)
		}
		if err != nil {
			return nil, err
		}
	}
	password, err := os.ReadFile(passwordFile)
	if err != nil {
		return nil, fmt.Errorf("read the superuser's password: %w", err)
	}
	// A port that was free a moment ago may be taken by now; only when it was ours to choose is there another try.
	for try := 1; ; try++ {
		s := &Server{port: opts.Port, password: strings.TrimSpace(string(password)), version: bin.Major, dataDir: opts.DataDir, exited: make(chan struct{})}
		if opts.Port == 0 {
			if s.port, err = freePort(); err != nil {
				return nil, err
			}
		}
		err := s.start(ctx, opts, bin, pgdata, as)
		if err == nil {
			return s, nil
		}
		if opts.Port != 0 || try == 5 || !errors.Is(err, errPortTaken) {
			return nil, err
		}
	}
}

// binaries settles which server program to run: it must be of the version that made the data.
func (o Options) binaries(ctx context.Context, major int, as *account) (Binaries, error) {
	var b Binaries
	var err error
	if o.BinDir != "" {
		b, err = inspect(ctx, o.BinDir)
	} else if b, err = Find(ctx, major); errors.Is(err, ErrNoBinaries) {
		o.Log.InfoContext(ctx, "no postgres is installed, downloading one")
		if b, err = Download(ctx); err != nil {
			err = fmt.Errorf("%w: install Postgres %d or newer, or name a running one, or allow a download (it failed: %w)", ErrNoBinaries, MinMajor, err)
		}
	}
	if err != nil {
		return Binaries{}, err
	}
	if major > 0 && b.Major != major {
		return Binaries{}, fmt.Errorf("open %s: its data was made by Postgres %d, the binaries in %s are version %d; install Postgres %d, or move the folder away to start empty", o.DataDir, major, b.Dir, b.Major, major)
	}
	return b, as.reach(b.Dir)
}

var errPortTaken = errors.New("port is taken")

func (s *Server) start(ctx context.Context, opts Options, bin Binaries, pgdata string, as *account) error {
	if err := checkPort(s.port); err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(opts.DataDir, "postgres.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open Postgres log: %w", err)
	}
	defer func() { _ = logFile.Close() }()
	logStart, err := logFile.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("open Postgres log: %w", err)
	}
	s.cmd = exec.Command(filepath.Join(bin.Dir, "postgres"), opts.args(pgdata, s.port)...)
	s.cmd.Dir = pgdata
	s.cmd.Env = serverEnv()
	s.cmd.Stdout, s.cmd.Stderr = logFile, logFile
	s.cmd.SysProcAttr = as.sysProcAttr()
	if !opts.outlive {
		dieWithParent(s.cmd.SysProcAttr, syscall.SIGINT) // a fast shutdown: the next start needs no recovery
	}
	started := make(chan error, 1)
	go s.run(started)
	if err := <-started; err != nil {
		return fmt.Errorf("start Postgres: %w", err)
	}
	if err := s.waitReady(ctx, opts.StartTimeout, pgdata); err != nil {
		s.kill()
		said := readFrom(logFile.Name(), logStart)
		if bytes.Contains(said, []byte("Address already in use")) {
			return fmt.Errorf("start Postgres on port %d: %w", s.port, errPortTaken)
		}
		return fmt.Errorf("%w\n%s", err, said)
	}
	return nil
}

// run starts the process and waits for its end, on one OS thread that it keeps for itself all the while: the kernel's
// parent-death signal is tied to the thread, and Go may end a thread that nothing is locked to.
func (s *Server) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := s.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	s.exitErr = s.cmd.Wait()
	close(s.exited)
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

// waitReady waits until the server says so in its lock file, and then for one real connection.
func (s *Server) waitReady(ctx context.Context, limit time.Duration, pgdata string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := readPostmaster(pgdata)
		if err == nil && status.ready && status.pid == s.cmd.Process.Pid {
			break
		}
		select {
		case <-s.exited:
			return fmt.Errorf("start Postgres: it ended: %w", s.exitErr)
		case <-ctx.Done():
			return fmt.Errorf("wait for Postgres to accept connections: %w", ctx.Err())
		case <-tick.C:
		}
	}
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to the started Postgres: %w", err)
	}
	return conn.Close(ctx)
}

// URL returns the superuser's connection URL for a database. It contains the password.
func (s *Server) URL(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port returns the TCP port that the server listens on.
func (s *Server) Port() int { return s.port }

// Version returns the server's major version.
func (s *Server) Version() int { return s.version }

// PID returns the postmaster's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Exited is closed when the server has ended, by [Server.Stop] or by itself.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Stop shuts the server down: sessions are cut, data is written out. When ctx ends before that is done it is made to end at
// once, which costs the next start a recovery and loses nothing. The second Stop does nothing.
func (s *Server) Stop(ctx context.Context) error {
	defer func() { _ = s.lock.Close() }()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		if err := s.cmd.Process.Signal(signal); errors.Is(err, os.ErrProcessDone) {
			<-s.exited
			return nil
		} else if err != nil {
			return fmt.Errorf("stop Postgres: %w", err)
		}
		select {
		case <-s.exited:
			return nil
		case <-ctx.Done():
		}
		ctx = context.WithoutCancel(ctx)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
	}
	s.kill()
	return errors.New("stop Postgres: it did not react and was killed; the next start recovers")
}

func (s *Server) kill() {
	_ = s.cmd.Process.Kill() // the only error is that it has ended
	<-s.exited
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

func checkPort(port int) error {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("start Postgres on port %d: %w (%w)", port, errPortTaken, err)
	}
	return ln.Close()
}

func readFrom(path string, offset int64) []byte {
	raw, err := os.ReadFile(path)
	if err != nil || int64(len(raw)) < offset {
		return nil
	}
	return bytes.TrimSpace(raw[offset:])
}
