//go:build servers

package outbox_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// execModes are the modes of pgx that prepare nothing on a connection that another may have next.
var execModes = []string{"exec", "cache_describe"}

// bouncer is a PgBouncer in transaction mode in front of a server.
type bouncer struct {
	server *ownServer
	port   int
}

func newBouncer(t *testing.T, server *ownServer) *bouncer {
	t.Helper()
	binary, err := exec.LookPath("pgbouncer")
	if err != nil {
		binary = "/usr/sbin/pgbouncer" // not on everybody's PATH
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("find pgbouncer: %v; install it (Debian: apt-get install pgbouncer)", err)
	}
	b := &bouncer{server: server, port: freePort(t)}
	dir := filepath.Dir(serverDir(t))
	url, err := pgx.ParseConfig(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	users := write("users.txt", fmt.Sprintf("%q %q\n", url.User, url.Password))
	config := write("pgbouncer.ini", fmt.Sprintf(`
[databases]
postgres = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = md5
auth_file = %s
admin_users = %s
pool_mode = transaction
default_pool_size = 6
`, server.Port(), b.port, users, url.User))
	command := exec.Command(binary, "--quiet", config)
	command.Stderr = t.Output()
	if os.Geteuid() == 0 { // it refuses to run as root
		info, err := os.Stat(filepath.Join(server.opts.DataDir, "pgdata"))
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the relays have stopped, which need it
		if err := command.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = command.Wait() // it was killed
	})
	eventually(t, func() error {
		conn, err := pgx.Connect(t.Context(), b.url("exec"))
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	})
	return b
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port
}

func (b *bouncer) urlOf(database, mode string) string {
	config, err := pgx.ParseConfig(b.server.URL(database))
	if err != nil {
		panic(err) // it is the server's own
	}
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s?sslmode=disable&default_query_exec_mode=%s",
		config.User, config.Password, b.port, database, mode)
}

func (b *bouncer) url(mode string) string { return b.urlOf("postgres", mode) }

func (b *bouncer) pool(t *testing.T, mode string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), b.url(mode))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// hide runs trouble between two transactions. No client is told, and none can do anything meanwhile.
func (b *bouncer) hide(t *testing.T, trouble func()) {
	t.Helper()
	admin, err := pgx.Connect(t.Context(), b.urlOf("pgbouncer", "simple_protocol"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(t.Context()) }()
	if _, err := admin.Exec(t.Context(), `PAUSE`); err != nil {
		t.Fatal(err)
	}
	trouble()
	if _, err := admin.Exec(t.Context(), `RESUME`); err != nil {
		t.Fatal(err)
	}
}

func TestPgBouncerHidesACrashAndARestartAndNothingIsLost(t *testing.T) {
	t.Parallel()
	for _, mode := range execModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			server := newServer(t)
			server.migrate(t)
			pooler := newBouncer(t, server)
			writer, broker := pooler.pool(t, mode), &outboxtest.Broker{}
			relay := startWatched(t, pooler.pool(t, mode), broker)
			write(t, writer, message("orders", "a", 0))
			waitFor(t, broker, 1)
			eventually(t, func() error { return backlogIs(t, writer, 0) })

			before := relay.rememberMore(t, server, writer)
			pooler.hide(t, func() {
				server.crash(t)
				server.start(t)
			})
			for n := 1; n <= 30; n++ {
				write(t, writer, message("orders", "a", n))
			}
			eachOnceInOrder(t, waitFor(t, broker, 31), "a", 31)
			relay.noticed(t, 0, 0)
			idsWereReused(t, writer, before)

			said, restarts := len(relay.log.since(0)), relay.count(t, "outbox.restarts")
			pooler.hide(t, func() {
				server.stop(t)
				server.start(t)
			})
			write(t, writer, message("orders", "a", 31))
			eachOnceInOrder(t, waitFor(t, broker, 32), "a", 32)
			eventually(t, func() error { return backlogIs(t, writer, 0) })
			relay.noticed(t, said, restarts)
		})
	}
}

func TestPgBouncerBetweenWritersAndRelaysThatFailOver(t *testing.T) {
	t.Parallel()
	for _, mode := range execModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			server := newServer(t)
			server.migrate(t)
			pooler := newBouncer(t, server)
			writer, broker := pooler.pool(t, mode), &outboxtest.Broker{}
			old := writeToOldLeaf(t, writer, message("orders", "old", 0))
			const keys, each = 4, 60
			var writers sync.WaitGroup
			for k := range keys {
				writers.Go(func() {
					for n := range each {
						err := pgx.BeginFunc(t.Context(), writer, func(tx pgx.Tx) error {
							return outbox.Writer{Schema: schema}.Write(t.Context(), tx,
								message("orders", fmt.Sprint("key-", k), n), message("orders", fmt.Sprint("own-", k), n))
						})
						if err != nil {
							t.Errorf("writer of key-%d: %v", k, err)
							return
						}
					}
				})
			}
			leader := newMortalAt(t, pooler.url(mode), nil)
			t.Cleanup(leader.Close)
			start(t, leader.Pool, broker, outbox.RelayOptions{Lease: time.Second})
			waitFor(t, broker, 20)
			start(t, pooler.pool(t, mode), broker, shortRetention(), often)
			leader.kill()
			pooler.hide(t, func() {
				server.crash(t)
				server.start(t)
			})
			writers.Wait()
			records := waitFor(t, broker, 2*keys*each+1)
			for k := range keys {
				eachOnceInOrder(t, records, fmt.Sprint("key-", k), each)
				eachOnceInOrder(t, records, fmt.Sprint("own-", k), each)
			}
			var epoch int64
			if err := writer.QueryRow(t.Context(), `SELECT epoch FROM orders.outbox_lease`).Scan(&epoch); err != nil || epoch < 2 {
				t.Errorf("epoch is %d (%v), want a second leader", epoch, err)
			}
			eventually(t, func() error { return isEmpty(t, writer, old) })
		})
	}
}

// Every other statement of the package, through a pooler.
func TestPgBouncerLetsParkedMessagesBeReleasedAndReplayed(t *testing.T) {
	t.Parallel()
	server := newServer(t)
	server.migrate(t)
	pooler := newBouncer(t, server)
	for i, mode := range execModes {
		pool := pooler.pool(t, mode)
		key := mode
		refuse, cure := poison(key, 0)
		broker := &outboxtest.Broker{Refuse: refuse}
		_, stop := start(t, pool, broker, outbox.RelayOptions{Name: mode})
		big := message("orders", key, 2)
		big.Payload = make([]byte, 100_000) // too large for a poll, so the window is listed
		write(t, pool, message("orders", key, 0), message("orders", key, 1), big)
		eventually(t, func() error {
			parked, err := outbox.ListParked(t.Context(), pool, schema)
			if err == nil && len(parked) != 3 {
				err = fmt.Errorf("%d messages are parked, want 3", len(parked))
			}
			return err
		})
		status, err := outbox.Inspect(t.Context(), pool, schema)
		if err != nil || len(status.Relays) != i+2 {
			t.Fatalf("Inspect = %d relays, %v", len(status.Relays), err)
		}
		cure()
		if n, err := outbox.Release(t.Context(), pool, schema, "orders", key, "ada"); n != 3 || err != nil {
			t.Fatalf("Release = %d, %v, want 3", n, err)
		}
		eventually(t, func() error { return publishedOf(broker, key, 3) })
		number, err := outbox.Replay(t.Context(), pool, schema,
			outbox.ReplayOptions{Relay: mode, Since: time.Now().Add(-time.Hour), Key: key})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			messages, done, err := outbox.ReplayDone(t.Context(), pool, schema, number)
			if err == nil && (!done || messages != 3) {
				err = fmt.Errorf("replay of %s: %d messages, done %v", mode, messages, done)
			}
			return err
		})
		stop()
		if err := outbox.Discard(t.Context(), pool, schema, big.ID, "ada", "test"); !errors.Is(err, outbox.ErrNotParked) {
			t.Errorf("Discard = %v, want ErrNotParked", err)
		}
	}
}
