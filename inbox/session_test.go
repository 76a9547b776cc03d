package inbox_test

import (
	"context"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

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

// F17
func TestAMemberThatIsPausedPastItsSessionCommitsNothing(t *testing.T) {
	t.Parallel()
	inABubble(t, func(b *bubble) {
		type commit struct {
			member string
			offset int64
		}
		commits := make(chan commit, 1000)
		b.cluster.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
			b.cluster.KeepControl()
			asked := req.(*kmsg.OffsetCommitRequest)
			commits <- commit{asked.MemberID, asked.Topics[0].Partitions[0].Offset}
			return nil, nil, false
		})
		handled := make(chan string, 10)
		by := func(name string) []inbox.Route {
			return onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				handled <- name
				return apply(ctx, tx, m)
			})
		}

		// The first one stops in the middle of saying how far it has come.
		zombie, stopped := newProcess(b, b.db.URL, nil), make(chan struct{})
		b.Cleanup(zombie.pool.Close)
		zombie.network = b.network.DialContext
		var once sync.Once
		zombie.asked = func(request kmsg.Key, _ *wire) {
			if request == kmsg.OffsetCommit {
				once.Do(func() {
					zombie.pause()
					close(stopped)
				})
			}
		}
		opts := b.member(zombie.dialer()...)
		opts.CommitEvery = time.Minute // never while it joins the group, see docs/kfake.md
		first, err := inbox.NewConsumer(zombie.pool, "test", by("zombie"), opts)
		if err != nil {
			b.Fatal(err)
		}
		b.run(first)
		b.Cleanup(zombie.resume) // or it would not end
		b.produce(record("u1", 1, ""))
		await(b, "the first message handled", handled)
		await(b, "its offset on the way", stopped)
		since := time.Now()
		b.produce(record("u1", 2, ""), record("u1", 3, "")) // which the broker may have sent to the silent one, too

		b.run(b.consumer(by("second"), b.member(kgo.Dialer(b.network.DialContext))))
		for n := range 3 {
			if name := await(b, "a message of the silent member", handled); name != "second" {
				b.Errorf("handled by the %s", name)
			}
			if n > 0 {
				continue
			}
			if took := time.Since(since); took < session-beat || took > session+beat {
				b.Errorf("the second had a message after %v, want it %v behind the last heartbeat, one of which comes every %v", took, session, beat)
			}
			b.produce(record("u1", 4, ""))
		}
		b.wait("the second's offset", func() bool { return b.committed(0) == 4 })
		owner := (<-commits).member

		zombie.resume()
		late := await(b, "the late commit", commits)
		for late.member == owner {
			late = await(b, "the late commit", commits)
		}
		if late.offset != 1 {
			b.Errorf("the late commit is of offset %d, want 1", late.offset)
		}
		time.Sleep(2 * opts.CommitEvery) //nolint:forbidigo // the bubble's clock
		if err := first.Ready(); err != nil {
			b.Errorf("the first is no member again: %v", err)
		}
		if at := b.committed(0); at != 4 {
			b.Errorf("offset %d is committed in the end, want that of the second, 4", at)
		}
		b.wantEffects("u1", 1, 2, 3, 4)
	})
}
