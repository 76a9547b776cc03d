package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

const superuser = "postgres"

// ErrInUse is returned by [Start] while another owner has a server on the same directory.
var ErrInUse = errors.New("in use by another process")

// Server is a running server. Its owner calls [Server.Stop].
type Server struct {
	port     int
	password string
	version  int
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
		_ = filelock.Close(lock)
		return nil, err
	}
	s.lock = lock
	return s, nil
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
		opts.Progress("filling a new data folder (initdb)")
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
	// A port that was free a moment ago may be taken by now; where it is ours to choose there is another try.
	for try := 1; ; try++ {
		s := &Server{port: opts.Port, password: strings.TrimSpace(string(password)), version: bin.Major, exited: make(chan struct{})}
		if opts.Port == 0 || try > 1 {
			if s.port, err = freePort(ctx); err != nil {
				return nil, err
			}
		}
		err := s.start(ctx, opts, bin, pgdata, as)
		if err == nil {
			return s, nil
		}
		ours := opts.Port == 0 || opts.AnyPort
		if !ours || try == 5 || !errors.Is(err, errPortTaken) {
			return nil, err
		}
	}
}

var errPortTaken = errors.New("port is taken")

func (s *Server) start(ctx context.Context, opts Options, bin Binaries, pgdata string, as *account) error {
	if err := checkPort(ctx, s.port); err != nil {
		return err
	}
	logFile, logStart, err := openLog(opts.DataDir)
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	// ctx ends the start, not the server.
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(bin.Dir, "postgres"), opts.args(pgdata, s.port)...)
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
	defer func() { _ = filelock.Close(s.lock) }()
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

func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

func checkPort(ctx context.Context, port int) error {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
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
