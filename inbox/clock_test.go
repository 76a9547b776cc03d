package inbox_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

// onABubblesClock runs a test whose clock moves when nobody has anything to do but to wait for it. The broker's network is
// inside the bubble; Postgres is outside, and the clock stands still while it is asked. Its own clock is the real one, so
// that nothing in here can be about next_at or leases.
func onABubblesClock(t *testing.T, test func(w *world, network *kfake.VirtualNetwork)) {
	t.Helper()
	url := newDatabase(t).URL
	synctest.Test(t, func(t *testing.T) {
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		var network kfake.VirtualNetwork
		broker := kafkatest.NewFake(t, kfake.SeedTopics(1, topics()...), kfake.Ports(9092), kfake.ListenFn(network.Listen)).Broker
		client := broker.Client(t, kgo.Dialer(network.DialContext))
		test(&world{T: t, db: &pgtest.DB{URL: url, Pool: pool}, broker: broker, client: client, adm: kadm.NewClient(client)}, &network)
	})
}

// ofBubble are the options of a consumer whose way to the broker is dial.
func (w *world) ofBubble(dial func(ctx context.Context, network, addr string) (net.Conn, error)) inbox.Options {
	return inbox.Options{Kafka: []kgo.Opt{kgo.SeedBrokers(w.broker.Addrs...), kgo.Dialer(dial)}}
}

func TestInlineTriesAreSpreadWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	onABubblesClock(t, func(w *world, network *kfake.VirtualNetwork) {
		tries := make(chan time.Time, 10)
		opts := w.ofBubble(network.DialContext)
		opts.BatchWait = -1
		stop := w.start(func(context.Context, pgx.Tx, inbox.Message) error {
			tries <- time.Now()
			return errors.New("not yet")
		}, opts)
		w.produce(record("u1", 1, ""))
		<-tries // of a batch without savepoints, whose failures are nobody's
		first, second, third := <-tries, <-tries, <-tries
		// Full jitter below 50 ms × 4^n; see backoff.go.
		for _, gap := range []struct {
			is, below time.Duration
		}{{second.Sub(first), 200 * time.Millisecond}, {third.Sub(second), 800 * time.Millisecond}} {
			if gap.is <= 0 || gap.is > gap.below {
				w.Errorf("%v between two tries, want some of %v", gap.is, gap.below)
			}
		}
		stop() // when the batch of the last try is committed
		if parked := w.parked(inbox.Filter{}); len(parked) != 1 || parked[0].Attempts != 3 {
			w.Errorf("parked behind three tries: %s, want one", w.describeParked())
		}
	})
}

func TestABatchWaitsForMoreUntilItsTimeIsOver(t *testing.T) {
	t.Parallel()
	onABubblesClock(t, func(w *world, network *kfake.VirtualNetwork) {
		const linger = 10 * time.Minute
		handled := make(chan time.Time, 10)
		opts := w.ofBubble(network.DialContext)
		opts.BatchSize, opts.BatchWait = 3, linger
		w.start(func(context.Context, pgx.Tx, inbox.Message) error {
			handled <- time.Now()
			return nil
		}, opts)
		began := time.Now()
		w.produce(record("u1", 1, ""), record("u2", 1, ""))
		<-handled
		if second := <-handled; second.Sub(began) < linger || second.Sub(began) > linger+time.Minute {
			w.Errorf("two messages of a batch of three were handled after %v, want %v", second.Sub(began), linger)
		}
		began = time.Now()
		w.produce(record("u3", 1, ""), record("u4", 1, ""), record("u5", 1, ""))
		for range 3 {
			if at := <-handled; at.Sub(began) >= linger {
				w.Errorf("a message of a full batch was handled after %v, want at once", at.Sub(began))
			}
		}
	})
}

func TestTheMessagesOfASilentMemberAreAnothersWhenItsSessionIsOver(t *testing.T) {
	t.Parallel()
	onABubblesClock(t, func(w *world, network *kfake.VirtualNetwork) {
		const session = 45 * time.Second // the client's default
		var mu sync.Mutex
		var conns []net.Conn
		silent := false
		keepSilent := func(on bool) {
			mu.Lock()
			defer mu.Unlock()
			silent = on
			for _, conn := range conns {
				_ = conn.Close() // all that the group sees of it is that it sees nothing
			}
			conns = nil
		}
		dial := func(ctx context.Context, n, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if silent {
				return nil, net.ErrClosed
			}
			conn, err := network.DialContext(ctx, n, addr)
			conns = append(conns, conn)
			return conn, err
		}
		handled := make(chan string, 10)
		by := func(name string) inbox.Handler {
			return func(context.Context, pgx.Tx, inbox.Message) error {
				handled <- name
				return nil
			}
		}
		w.start(by("first"), w.ofBubble(dial))
		w.produce(record("u1", 1, ""))
		if name := <-handled; name != "first" {
			w.Fatalf("handled by the %s", name)
		}
		w.wait("its offset", func() bool { return w.committed(0) == 1 })
		keepSilent(true)
		since := time.Now()
		w.produce(record("u1", 2, ""))
		w.start(by("second"), w.ofBubble(network.DialContext))
		name := <-handled
		if took := time.Since(since); name != "second" || took < session-10*time.Second || took > 2*session {
			w.Errorf("handled by the %s after %v, want the second after a session of %v", name, took, session)
		}
		keepSilent(false) // or it would not come to its end
	})
}
