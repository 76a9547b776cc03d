package inbox_test

import (
	"context"
	"errors"
	"runtime/debug"
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

// bubble is a world whose clock moves when everybody in it waits for it. The broker and the way to it are inside; Postgres is
// outside, and while it is asked the clock stands. docs/kfake.md says what must not be done in here.
type bubble struct {
	*world
	cluster *kfake.Cluster
	network *kfake.VirtualNetwork
}

func inABubble(t *testing.T, test func(b *bubble)) {
	t.Helper()
	url := newDatabase(t).URL
	// A bubble whose clock stands for good ends no test by itself.
	stands := time.AfterFunc(3*time.Minute, func() {
		debug.SetTraceback("all")
		panic(t.Name() + ": the bubble's clock stands")
	})
	defer stands.Stop()
	today := time.Now().Round(0) // without the monotonic clock, which is not the bubble's
	synctest.Test(t, func(t *testing.T) {
		// A bubble begins in the year 2000. The ids of messages say when they were made, and are refused when that is far off.
		time.Sleep(time.Until(today)) //nolint:forbidigo // the bubble's clock
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		b := &bubble{network: &kfake.VirtualNetwork{}}
		fake := kafkatest.NewFake(t, kfake.SeedTopics(1, topics()...), kfake.Ports(9092), kfake.ListenFn(b.network.Listen))
		client := fake.Client(t, kgo.Dialer(b.network.DialContext))
		b.cluster = fake.Cluster
		b.world = &world{T: t, db: &pgtest.DB{URL: url, Pool: pool}, broker: fake.Broker, client: client, adm: kadm.NewClient(client)}
		test(b)
	})
}

const (
	session = 45 * time.Second
	beat    = 3 * time.Second
)

// member are the options of a consumer that seldom asks Postgres for anything but its messages.
func (b *bubble) member(way ...kgo.Opt) inbox.Options {
	opts := b.options()
	opts.Kafka = append(way, kgo.SeedBrokers(b.broker.Addrs...), kgo.SessionTimeout(session), kgo.HeartbeatInterval(beat))
	opts.DrainEvery, opts.PauseEvery = time.Hour, time.Hour
	return opts
}

// await returns what comes next, and fails the test when two sessions pass without.
func await[T any](b *bubble, what string, from <-chan T) T {
	b.Helper()
	var next T
	select {
	case next = <-from:
	case <-time.After(2 * session):
		b.Fatalf("not within %v: %s\nparked: %s", 2*session, what, b.describeParked())
	}
	return next
}

func TestAConsumerTriesAMessageAgainAtGrowingIntervals(t *testing.T) {
	t.Parallel()
	inABubble(t, func(b *bubble) {
		tries := make(chan time.Time, 10)
		stop := b.start(func(context.Context, pgx.Tx, inbox.Message) error {
			tries <- time.Now()
			return errors.New("not yet")
		}, b.member(kgo.Dialer(b.network.DialContext)))
		b.produce(record("u1", 1, ""))
		await(b, "a batch without savepoints, whose failures are nobody's", tries)
		last := await(b, "the first try", tries)
		// Full jitter below 50 ms × 4^n; see backoff.go.
		for _, most := range []time.Duration{200 * time.Millisecond, 800 * time.Millisecond} {
			at := await(b, "the next try", tries)
			if wait := at.Sub(last); wait <= 0 || wait > most {
				b.Errorf("%v between two tries, want some of %v", wait, most)
			}
			last = at
		}
		stop() // when the batch of the last try is committed
		if parked := b.parked(inbox.Filter{}); len(parked) != 1 || parked[0].Attempts != 3 {
			b.Errorf("parked behind three tries: %s, want one", b.describeParked())
		}
	})
}

func TestAConsumerWaitsForMoreMessagesUntilTheTimeOfItsBatchIsOver(t *testing.T) {
	t.Parallel()
	inABubble(t, func(b *bubble) {
		const linger = time.Minute
		handled := make(chan time.Time, 10)
		opts := b.member(kgo.Dialer(b.network.DialContext))
		opts.BatchSize, opts.BatchWait = 3, linger
		b.start(func(context.Context, pgx.Tx, inbox.Message) error {
			handled <- time.Now()
			return nil
		}, opts)
		for _, batch := range []struct {
			keys []string
			wait time.Duration
		}{{[]string{"u1", "u2"}, linger}, {[]string{"u3", "u4", "u5"}, 0}} {
			began := time.Now()
			for _, key := range batch.keys {
				b.produce(record(key, 1, ""))
			}
			for range batch.keys {
				if wait := await(b, "a message handled", handled).Sub(began); wait < batch.wait || wait > batch.wait+5*time.Second {
					b.Errorf("one of %d messages was handled after %v, want %v and what the way takes", len(batch.keys), wait, batch.wait)
				}
			}
		}
	})
}
