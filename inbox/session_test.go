package inbox_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/inbox"
)

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
