package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// reported are options with a log and a meter to look at.
func (w *world) reported() (inbox.Options, *lines, *sdk.ManualReader) {
	log, reader := &lines{}, sdk.NewManualReader()
	opts := w.options()
	opts.Log = slog.New(slog.NewTextHandler(log, nil))
	opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("inbox")
	return opts, log, reader
}

// F13, I12: a leader that had not all of the log takes over, and other messages come to the offsets that the consumer has read.
func TestKafkaLostTheEndOfALogAndWhatComesThereInsteadIsHandled(t *testing.T) {
	t.Parallel()
	fake := kafkatest.NewFake(t, kfake.NumBrokers(2), kfake.SeedTopics(kafkatest.Partitions, topics()...))
	w := newWorldOn(t, fake.Broker)
	const kept, all = 7, 10
	var cut atomic.Bool
	release := make(chan struct{})
	t.Cleanup(func() {
		select {
		case <-release:
		default:
			close(release)
		}
	})
	opts, log, reader := w.reported()
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if cut.Load() {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return apply(ctx, tx, m)
	}, opts)
	records := make([]*kgo.Record, all)
	for i := range records {
		records[i] = record("u1", i+1, "")
	}
	w.produce(records...)
	partition := records[0].Partition
	w.wait("all read", func() bool { return w.lag() == 0 })

	// kfake cannot lose what it has. The group can: the last messages are then as good as others that came to their offsets.
	for _, sql := range []string{
		`DELETE FROM processed_messages WHERE event_id IN (SELECT id FROM effects WHERE seq > $1)`,
		`DELETE FROM effects WHERE seq > $1`,
	} {
		if _, err := w.db.Pool.Exec(t.Context(), sql, kept); err != nil {
			t.Fatal(err)
		}
	}
	cut.Store(true)
	fake.Cluster.ControlKey(int16(kmsg.OffsetForLeaderEpoch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		return endsAt(req.(*kmsg.OffsetForLeaderEpochRequest), kept), nil, true
	})
	if err := fake.Cluster.MoveTopicPartition(topic, partition, 1-fake.Cluster.LeaderFor(topic, partition)); err != nil {
		t.Fatal(err)
	}
	w.wait("the offset of the cut committed", func() bool { return w.committed(partition) == kept })
	close(release)
	w.wait("all effects and no lag", func() bool { return len(w.effects("u1")) == all && w.lag() == 0 })
	w.wantEffects("u1", seqs(all)...)
	if n := log.containing("kafka has lost the end of a partition"); n != 1 {
		t.Errorf("the log says %d times that the end of a partition is lost, want once", n)
	}
	if n := counted(t, reader, "inbox.offsets.lost", "cause")["cut"]; n != all-kept {
		t.Errorf("%d offsets are counted as lost, want %d", n, all-kept)
	}
}

// endsAt answers that the log of each partition asked for ends at offset in the epoch the client has read.
func endsAt(req *kmsg.OffsetForLeaderEpochRequest, offset int64) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	for _, topic := range req.Topics {
		answer := kmsg.NewOffsetForLeaderEpochResponseTopic()
		answer.Topic = topic.Topic
		for _, p := range topic.Partitions {
			part := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			part.Partition, part.LeaderEpoch, part.EndOffset = p.Partition, p.LeaderEpoch, offset
			answer.Partitions = append(answer.Partitions, part)
		}
		resp.Topics = append(resp.Topics, answer)
	}
	return resp
}

func TestRecordsThatWereRemovedUnreadAreReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.start(apply, w.options())
	first := record("u1", 1, "")
	w.produce(first, record("u1", 2, ""))
	w.wait("two read", func() bool { return len(w.effects("u1")) == 2 && w.lag() == 0 })
	stop()
	w.produce(record("u1", 3, ""), record("u1", 4, ""), record("u1", 5, ""), record("u1", 6, ""))
	const start = 5 // as retention would have it
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: topic, Partition: first.Partition, At: start})
	removed, err := w.adm.DeleteRecords(t.Context(), offsets)
	if err = errors.Join(err, removed.Error()); err != nil {
		t.Fatal(err)
	}
	opts, log, reader := w.reported()
	w.start(apply, opts)
	w.wait("what is left", func() bool { return len(w.effects("u1")) == 3 && w.lag() == 0 })
	w.wantEffects("u1", 1, 2, 6)
	if n := log.containing(fmt.Sprintf(`records were removed before they were read" group=test topic=orders partition=%d offset=2 records=3`, first.Partition)); n != 1 {
		t.Errorf("the log says %d times that 3 records from offset 2 on were removed, want once: %v", n, log.all)
	}
	if n := counted(t, reader, "inbox.offsets.lost", "cause")["removed"]; n != 3 {
		t.Errorf("%d offsets are counted as removed, want 3", n)
	}
}

// F13, by an operator's hand: the topic is made anew under a running consumer, with more in it than was read of the old one.
func TestATopicThatIsDeletedAndMadeAnewIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.options())
	w.produce(record("u1", 1, ""), record("u1", 2, ""))
	w.wait("two read", func() bool { return len(w.effects("u1")) == 2 && w.lag() == 0 })
	deleted, err := w.adm.DeleteTopics(t.Context(), topic)
	if err = errors.Join(err, deleted.Error()); err != nil {
		t.Fatal(err)
	}
	w.wait("the topic gone", func() bool {
		left, err := w.adm.ListTopics(t.Context(), topic)
		return err == nil && !left.Has(topic)
	})
	w.broker.Create(t, kafkatest.Partitions, nil, topic)
	w.broker.Produce(t, record("u1", 3, ""), record("u1", 4, ""), record("u1", 5, "")) // a client that knows the old topic cannot
	w.wait("what is in the new topic", func() bool { return len(w.effects("u1")) == 5 })
	w.wantEffects("u1", 1, 2, 3, 4, 5)
}
