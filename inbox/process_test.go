package inbox_test

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// process is all that a consumer has of the world, as if it ran in a process of its own: connections to Postgres and Kafka
// that break together when it is killed, and through which nothing goes while it is paused.
type process struct {
	pool *pgxpool.Pool

	// asked, if set, is told of each request to Kafka before it is written. It may kill the process.
	asked func(request kmsg.Key, w *wire)

	network func(ctx context.Context, network, addr string) (net.Conn, error) // to Kafka, if not the machine's

	mu      sync.Mutex
	resumed *sync.Cond
	wires   []*wire
	paused  bool
	dead    bool
}

// newProcess returns a process with a pool of few connections to the database of url, which the caller closes. configure
// may add a tracer.
func newProcess(t testing.TB, url string, configure func(*pgxpool.Config)) *process {
	t.Helper()
	p := &process{}
	p.resumed = sync.NewCond(&p.mu)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 5
	config.ConnConfig.RuntimeParams["application_name"] = "member"
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return p.dial(ctx, network, addr, false)
	}
	if configure != nil {
		configure(config)
	}
	if p.pool, err = pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config); err != nil {
		t.Fatal(err)
	}
	return p
}

// dialer is the process' way to Kafka. What cannot be sent is given up at once: nobody waits for the dead.
func (p *process) dialer() []kgo.Opt {
	again := func(int) time.Duration { return 20 * time.Millisecond }
	return []kgo.Opt{kgo.RequestRetries(5), kgo.RetryBackoffFn(again), kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		return p.dial(ctx, network, addr, true)
	})}
}

func (p *process) dial(ctx context.Context, network, addr string, kafka bool) (net.Conn, error) {
	if !p.alive() {
		return nil, net.ErrClosed
	}
	open := (&net.Dialer{}).DialContext
	if kafka && p.network != nil {
		open = p.network
	}
	conn, err := open(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn, process: p, kafka: kafka}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		_ = conn.Close() // nothing was sent
		return nil, net.ErrClosed
	}
	p.wires = append(p.wires, w)
	return w, nil
}

// alive waits while the process is paused, and reports whether it lives.
func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.paused && !p.dead {
		p.resumed.Wait()
	}
	return !p.dead
}

// kill is kill -9 as far as the servers can tell: no goodbye, no rollback, no leaving the group.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for _, w := range p.wires {
		_ = w.Close() // it may be closed
	}
	p.resumed.Broadcast()
}

// pause stops everything that comes and goes, as SIGSTOP does, until resume.
func (p *process) pause()  { p.setPaused(true) }
func (p *process) resume() { p.setPaused(false) }

func (p *process) setPaused(paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = paused
	p.resumed.Broadcast()
}

// wire is one connection of a process.
type wire struct {
	net.Conn
	process *process
	kafka   bool
	deaf    atomic.Bool // the answer kills the process before it is heard
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err == nil && w.deaf.Load() {
		w.process.kill()
	}
	if !w.process.alive() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	if w.kafka && w.process.asked != nil && len(b) >= 6 {
		w.process.asked(kmsg.Key(binary.BigEndian.Uint16(b[4:])), w)
	}
	if !w.process.alive() {
		return 0, net.ErrClosed
	}
	return w.Conn.Write(b)
}

// SetWriteDeadline is not heeded in a network of one's own, where a minute's pause takes no time: what a process was about to
// write when it was paused, it writes when it is resumed.
func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.process.network != nil {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}
