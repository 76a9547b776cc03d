package inbox_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func TestASlowKeyIsParkedBeforeItStopsItsPartition(t *testing.T) {
	t.Parallel()
	const quickOnes, strangers = 100, 600
	w := newWorld(t)
	opts := w.options()
	opts.MaxBuffered = 100 // so a slow key is parked 500 offsets behind the newest
	began, release := make(chan struct{}, 2), make(chan struct{}, 2)
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "slow" {
			began <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return apply(ctx, tx, m)
	}, opts)
	first := record("slow", 1, "slow")
	w.produce(first)
	<-began

	// The first message takes as long as a hundred others, and its partition runs far ahead of it.
	second := []*kgo.Record{record("slow", 2, "slow")}
	for range strangers {
		second = append(second, withHeaders(&kgo.Record{Topic: topic, Key: []byte("slow"), Value: []byte("{}")}, uuid.Must(uuid.NewV7()), "not.ours.v1"))
	}
	w.produce(second...)
	quick := w.neighbour(first)
	for seq := 2; seq <= quickOnes; seq++ {
		w.produce(record(quick, seq, ""))
	}
	w.wait("a hundred others", func() bool { return len(w.effects(quick)) == quickOnes })
	release <- struct{}{}
	w.wait("the next message of the slow key among the parked", func() bool {
		parked := w.parked(inbox.Filter{})
		return len(parked) == 1 && parked[0].Class == inbox.ClassSlowKey && parked[0].Key == "slow" && parked[0].Attempts == 0
	})
	w.produce(record("slow", 3, ""))
	<-began // of the drainer
	release <- struct{}{}
	w.wait("all effects", func() bool { return len(w.effects("slow")) == 3 && w.lag() == 0 })
	w.wantEffects("slow", 1, 2, 3)
	w.wait("nothing held", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
}

// neighbour returns another key of rec's partition, of which message 1 is produced.
func (w *world) neighbour(rec *kgo.Record) string {
	w.Helper()
	for n := 0; ; n++ {
		key := fmt.Sprint("neighbour-", n)
		other := record(key, 1, "")
		if w.produce(other); other.Partition == rec.Partition {
			return key
		}
	}
}
