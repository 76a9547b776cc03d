package outbox_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// mortal is a pool whose process can be killed: every connection breaks, and no new one is made.
type mortal struct {
	*pgxpool.Pool
	mu    sync.Mutex
	dead  bool
	conns []net.Conn
}

func newMortal(t testing.TB, db *pgtest.DB) *mortal {
	t.Helper()
	m := newMortalAt(t, db.URL, nil)
	t.Cleanup(m.Close)
	return m
}

// newMortalAt is newMortal for a caller that closes it. tracer, if any, sees every statement.
func newMortalAt(t testing.TB, url string, tracer pgx.QueryTracer) *mortal {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 5
	config.ConnConfig.Tracer = tracer
	m := &mortal{}
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		m.mu.Lock()
		defer m.mu.Unlock()
		if err == nil && m.dead {
			_ = conn.Close()
			err = net.ErrClosed
		}
		m.conns = append(m.conns, conn)
		return conn, err
	}
	if m.Pool, err = pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config); err != nil {
		t.Fatal(err)
	}
	return m
}

// kill is kill -9 as far as Postgres can tell: no goodbye, no release of the lease.
func (m *mortal) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	for _, conn := range m.conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

func TestStandbyTakesOverFromAKilledLeaderWhenItsLeaseIsOver(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	pool := newMortal(t, db)
	start(t, pool.Pool, broker, outbox.RelayOptions{Lease: time.Second})
	write(t, db.Pool, message("orders", "a", 1))
	waitFor(t, broker, 1)
	start(t, db.Pool, broker, outbox.RelayOptions{})
	pool.kill()
	var left float64 // by Postgres' clock, which is the one that decides
	if err := db.Pool.QueryRow(t.Context(), `
		SELECT extract(epoch FROM expires_at - clock_timestamp())::float8
		FROM orders.outbox_lease
		WHERE epoch = 1`).Scan(&left); err != nil || left > 1 {
		t.Errorf("the killed leader's lease of 1 s is over in %v s, %v", left, err)
	}
	write(t, db.Pool, message("orders", "a", 2))
	waitFor(t, broker, 2)
}

// F8: a leader that was paused past its lease holds a page it has read long ago. Neither its page nor its checkpoint may
// disturb what its successor does.
func TestPausedLeaderIsFenced(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	var (
		paused  = make(chan struct{})
		resume  = make(chan struct{})
		pauseIt sync.Once
		shared  outboxtest.Broker
	)
	slow := &outboxtest.Broker{Sending: func(page []outbox.Record) error {
		pauseIt.Do(func() {
			close(paused)
			<-resume
		})
		for _, err := range shared.Publish(context.WithoutCancel(t.Context()), page) {
			if err != nil {
				return err
			}
		}
		return nil
	}}
	write(t, db.Pool, message("orders", "a", 1), message("orders", "a", 2))
	// Nothing tells the paused one: it will not renew its lease for another twenty seconds.
	_, stop := start(t, db.Pool, slow, outbox.RelayOptions{Lease: time.Minute})
	<-paused
	if _, err := db.Pool.Exec(t.Context(), `
		UPDATE orders.outbox_lease SET holder = '', expires_at = '-infinity'`); err != nil {
		t.Fatal(err)
	}
	start(t, db.Pool, &shared, outbox.RelayOptions{Lease: time.Minute},
		func(r *outbox.Relay) { r.SetTidyEvery(time.Hour) })
	write(t, db.Pool, message("orders", "a", 3))
	waitFor(t, &shared, 3)
	var before string
	cursor := `SELECT string_agg(epoch || '/' || n || ' ' || prev, ', ' ORDER BY epoch, n) FROM orders.outbox_cursor`
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) }) // the successor's last checkpoint
	if err := db.Pool.QueryRow(t.Context(), cursor).Scan(&before); err != nil {
		t.Fatal(err)
	}
	close(resume)
	waitRecords(t, &shared, 5) // its page arrives after all: duplicates
	stop()
	var after string
	if err := db.Pool.QueryRow(t.Context(), cursor).Scan(&after); err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("a leader that was fenced has changed the cursor from %s to %s", before, after)
	}
	// It may read on until a checkpoint tells it: 3 again.
	got := strings.TrimSuffix(fmt.Sprint(values(shared.Records(), "a")), ` {"n":3}]`)
	if want := `[{"n":1} {"n":2} {"n":3} {"n":1} {"n":2}`; strings.TrimSuffix(got, "]") != want {
		t.Errorf("published %s, want %s and perhaps 3 again: first appearances in order", got, want)
	}
}

// waitRecords waits for n records, duplicates included.
func waitRecords(t testing.TB, broker *outboxtest.Broker, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := broker.Wait(ctx, func(records []outbox.Record) bool { return len(records) >= n }); err != nil {
		t.Fatal(err)
	}
}
