package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// Each kind of trouble is noticed although every connection seems to live on. What a relay has in memory then means
// nothing: after a crash, and in an older copy, Postgres gives the ids of lost transactions out again, and a snapshot
// from before takes the new ones for old ones.
func TestTroubleOfPostgresBehindAPoolerLosesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		// prepare may use the server before the relay's memory is ahead, and returns the trouble.
		prepare func(*testing.T, *front) func(*ownServer) *ownServer
		reused  bool // transaction ids are given out twice
	}{
		{"a crash of the whole server", crashed, true},
		{"a crash of one backend", backendKilled, true},
		{"a clean restart", restarted, false},
		{"an older copy of its files, elsewhere", copied, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			behind := &front{server: newServer(t)}
			behind.server.migrate(t)
			url := behind.server.URL("postgres")
			writer, broker := behind.pool(t, url), &outboxtest.Broker{}
			relay := startWatched(t, behind.pool(t, url), broker)
			write(t, writer, message("orders", "a", 0))
			waitFor(t, broker, 1)
			eventually(t, func() error { return backlogIs(t, writer, 0) })
			trouble := tt.prepare(t, behind)

			before := relay.rememberMore(t, behind.server, writer)
			said, restarts := len(relay.log.since(0)), relay.count(t, "outbox.restarts")
			behind.change(trouble)
			for n := 1; n <= 30; n++ {
				write(t, writer, message("orders", "a", n))
			}
			eachOnceInOrder(t, waitFor(t, broker, 31), "a", 31)
			relay.noticed(t, said, restarts)
			if tt.reused {
				idsWereReused(t, writer, before)
			}
			relay.stop() // before the server that it is connected to by now
		})
	}
}

func crashed(t *testing.T, _ *front) func(*ownServer) *ownServer {
	return func(s *ownServer) *ownServer {
		s.crash(t)
		s.start(t)
		return s
	}
}

// backendKilled is what the kernel does when memory is short. The postmaster lives on, and so does its start time.
func backendKilled(t *testing.T, _ *front) func(*ownServer) *ownServer {
	return func(s *ownServer) *ownServer {
		victim, err := pgx.Connect(t.Context(), s.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(int(victim.PgConn().PID()), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.signalWALWriter(syscall.SIGKILL)
		eventually(t, func() error { // the postmaster ends all others, then recovers
			if victim.Ping(t.Context()) == nil {
				return errors.New("the killed backend answers")
			}
			conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
			if err != nil {
				return err
			}
			var recovered bool // until then it may be the crash that is still to be noticed
			err = conn.QueryRow(t.Context(), `SELECT NOT EXISTS (SELECT FROM orders.outbox_crash)`).Scan(&recovered)
			if err == nil && !recovered {
				err = errors.New("postgres has not recovered yet")
			}
			return errors.Join(err, conn.Close(t.Context()))
		})
		return s
	}
}

func restarted(t *testing.T, _ *front) func(*ownServer) *ownServer {
	return func(s *ownServer) *ownServer {
		s.stop(t)
		s.start(t)
		return s
	}
}

// copied copies the files of the stopped server, and lets the copy take over when the server has gone on for a while.
func copied(t *testing.T, behind *front) func(*ownServer) *ownServer {
	var older localpg.Options
	behind.change(func(s *ownServer) *ownServer {
		s.stop(t)
		older = s.copyData(t)
		s.start(t)
		return s
	})
	return func(s *ownServer) *ownServer {
		s.stop(t)
		return startServer(t, older)
	}
}

// noticed fails the test unless the relay has dropped its memory since, and has said so. It may have noticed by a connection
// that broke.
func (w *watched) noticed(t *testing.T, said int, restarts float64) {
	t.Helper()
	const again = "relay starts again from its cursor"
	if log := w.log.since(said); !strings.Contains(log, again) {
		t.Errorf("the relay has logged %q, want it to say %q", log, again)
	}
	if now := w.count(t, "outbox.restarts"); now <= restarts {
		t.Errorf("outbox.restarts is %v as before", now)
	}
}

// idsWereReused fails the test if no message has a transaction id that was given out before.
func idsWereReused(t *testing.T, pool *pgxpool.Pool, before string) {
	t.Helper()
	var hidden int
	if err := pool.QueryRow(t.Context(), `
		SELECT count(*) FROM orders.outbox
		WHERE payload <> '{"n":0}' AND pg_visible_in_snapshot(txid, $1::text::pg_snapshot)`, before).Scan(&hidden); err != nil {
		t.Fatal(err)
	}
	if hidden == 0 {
		t.Error("the snapshot from before hides nothing: no transaction id was given out twice, so this proves nothing")
	}
}

// eachOnceInOrder checks that the messages 0 to n-1 of a key, and no others, first appear in this order.
func eachOnceInOrder(t *testing.T, records []outbox.Record, key string, n int) {
	t.Helper()
	seen, next := map[uuid.UUID]bool{}, 0
	for _, r := range records {
		if r.Key != key || seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		if want := fmt.Sprintf(`{"n":%d}`, next); string(r.Value) != want {
			t.Fatalf("message %d of key %s is %s, want %s", next, key, r.Value, want)
		}
		next++
	}
	if next != n {
		t.Fatalf("%d messages of key %s, want %d", next, key, n)
	}
}

// A page may be acked after the server has changed. Its snapshot must not become durable then.
func TestCheckpointIsRefusedUnderAnotherEpochOrServer(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	relay, err := outbox.NewRelay(db.Pool, &outboxtest.Broker{}, outbox.RelayOptions{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	var incarnation string
	if err := db.Pool.QueryRow(t.Context(), `SELECT orders.outbox_incarnation()`).Scan(&incarnation); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		epoch       int64
		incarnation string
		refused     bool
	}{
		{"an earlier epoch has been followed by another leader", -1, incarnation, true},
		{"a later epoch is nobody's", 1, incarnation, true},
		{"a crash has taken the token away", 0, incarnation + "2b5b0c2e-6a1c-4f4e-9d5b-0a9c0b6f7d11", true},
		{"the leader on the server that it knows", 0, incarnation, false},
	} {
		if err := relay.Checkpoint(t.Context(), c.epoch, c.incarnation, "100:100:"); (err != nil) != c.refused {
			t.Errorf("%s: Checkpoint = %v, want refused: %v", c.name, err, c.refused)
		}
	}
}

func backlogIs(t *testing.T, pool *pgxpool.Pool, want int64) error {
	status, err := outbox.Inspect(t.Context(), pool, schema)
	if err == nil && status.Relays[0].Backlog != want {
		err = fmt.Errorf("backlog is %d, want %d", status.Relays[0].Backlog, want)
	}
	return err
}

// Behind a pooler another server can take its place between two statements of a new leader.
func TestServerThatIsReplacedBehindANewLeaderIsIdentified(t *testing.T) {
	t.Parallel()
	behind := &front{server: newServer(t)}
	behind.server.migrate(t)
	var original localpg.Options
	behind.change(func(s *ownServer) *ownServer {
		s.stop(t)
		original = s.copyData(t)
		s.start(t)
		return s
	})
	other := startServer(t, original)
	// It was restored from elsewhere, where the lease was taken once as well.
	conn, err := pgx.Connect(t.Context(), other.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `
		UPDATE orders.outbox_identity SET system_identifier = 1;
		UPDATE orders.outbox_lease SET epoch = 1, expires_at = clock_timestamp() + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	replace := make(chan struct{})
	replaced := make(chan struct{})
	go func() {
		<-replace
		behind.change(func(*ownServer) *ownServer { return other })
		close(replaced)
	}()
	var once sync.Once
	pool := behind.pool(t, behind.server.URL("postgres"), func(config *pgxpool.Config) {
		prepare := config.PrepareConn
		var identified atomic.Bool
		config.ConnConfig.Tracer = traced{ends: func(sql string) {
			if strings.Contains(sql, "pg_control_system") {
				identified.Store(true)
			}
		}}
		config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			if identified.Load() {
				once.Do(func() { close(replace) })
				<-replaced
			}
			return prepare(ctx, conn)
		}
	})
	broker := &outboxtest.Broker{}
	relay := startWatched(t, pool, broker)
	eventually(t, func() error {
		if relay.count(t, "outbox.rebases") != 1 {
			return errors.New("the other server is not identified")
		}
		return nil
	})
}

// A sequence that starts again gives new messages of a key smaller numbers than its old ones, and numbers that are
// known as published.
func TestRestoreWithoutItsSequenceIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, ring string }{
		{"the sequence is below a row", ``},
		{"the ring is empty and the sequence below what was published", `TRUNCATE orders.outbox`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db, broker := newOutbox(t), &outboxtest.Broker{}
			_, stop := start(t, db.Pool, broker, outbox.RelayOptions{})
			write(t, db.Pool, message("orders", "a", 0), message("orders", "a", 1))
			waitFor(t, broker, 2)
			stop()
			if _, err := db.Pool.Exec(t.Context(), tt.ring+`;
				UPDATE orders.outbox_identity SET system_identifier = 1;
				SELECT setval('orders.outbox_seq_seq', 1)`); err != nil {
				t.Fatal(err)
			}
			start(t, db.Pool, broker, outbox.RelayOptions{})
			eventually(t, func() error { // it takes the lease again and again
				var epoch int64
				var rebased bool
				err := db.Pool.QueryRow(t.Context(), `
					SELECT epoch, EXISTS (SELECT FROM orders.outbox_identity WHERE system_identifier <> 1)
					FROM orders.outbox_lease`).Scan(&epoch, &rebased)
				if rebased {
					t.Fatal("the outbox is rebased over a sequence that was not restored")
				}
				if err == nil && epoch < 4 {
					err = fmt.Errorf("epoch is %d, want 3 attempts more", epoch)
				}
				return err
			})
			if _, err := db.Pool.Exec(t.Context(), `SELECT setval('orders.outbox_seq_seq', 2)`); err != nil {
				t.Fatal(err)
			}
			write(t, db.Pool, message("orders", "a", 2))
			eachOnceInOrder(t, waitFor(t, broker, 3), "a", 3)
		})
	}
}
