package inbox

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newIdle returns a consumer that does not run, with a client that talks to nobody.
func newIdle(t *testing.T, opts Options) (*Consumer, *kgo.Client) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), "postgres://localhost/unused") // connects when it is used
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c, err := NewConsumer(pool, "test", []Route{{Topic: "orders", Type: "order.placed.v1", Handle: accept}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers("localhost:1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return c, client
}

func TestAPartitionIsPausedInTheClientWhenTheConsumerThinksSo(t *testing.T) {
	t.Parallel()
	c, client := newIdle(t, Options{MaxBuffered: 1})
	at := topicPartition{"orders", 3}
	p := newPartition(at)
	c.partitions[at] = p
	for offset := range int64(2_000) {
		fetches := kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: at.topic, Partitions: []kgo.FetchPartition{{
			Partition: at.partition,
			Records: []*kgo.Record{{Topic: at.topic, Partition: at.partition, Offset: offset, Headers: []kgo.RecordHeader{
				{Key: "ce_type", Value: []byte("order.placed.v1")},
			}}},
		}}}}}}
		var both sync.WaitGroup
		both.Go(func() { c.enqueue(t.Context(), client, c.decoder(), fetches) })
		both.Go(func() {
			for worked := false; !worked; c.resume(client) {
				c.lanes.mu.Lock()
				if worked = len(p.tracked) > 0; worked {
					p.finish(p.tracked[0])
				}
				c.lanes.mu.Unlock()
			}
		})
		both.Wait()
		if paused := slices.Contains(client.PauseFetchPartitions(nil)[at.topic], at.partition); paused != p.paused {
			t.Fatalf("offset %d: the client has paused the partition: %v, the consumer thinks so: %v", offset, paused, p.paused)
		}
	}
}

func TestTheWatermarkOfACutLogStaysBelowWhatIsUnfinishedOfBothLogs(t *testing.T) {
	t.Parallel()
	c, client := newIdle(t, Options{})
	p := newPartition(topicPartition{"orders", 3})
	read := func(from, to int64) (tracked []*tracked) {
		for offset := from; offset < to; offset++ {
			rec := &kgo.Record{Topic: "orders", Partition: 3, Offset: offset, Headers: []kgo.RecordHeader{
				{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "ce_type", Value: []byte("order.placed.v1")},
			}}
			it := c.decoder().decode(rec, time.Now())
			c.addAll(t.Context(), client, p, []*kgo.Record{rec}, []*item{it})
			tracked = append(tracked, it.track)
		}
		return tracked
	}
	old := read(0, 10)
	for _, offset := range []int{0, 1, 2, 3, 4, 8} {
		p.finish(old[offset])
	}
	instead := read(7, 9) // of the first log 7 is unfinished, 8 is finished, 9 is unfinished
	for _, step := range []struct {
		finish *tracked
		want   int64
	}{{instead[1], 5}, {old[5], 6}, {old[6], 7}, {old[7], 7}, {old[9], 7}, {instead[0], 9}} {
		p.finish(step.finish)
		if got := p.watermark(); got != step.want {
			t.Fatalf("watermark() = %d, want %d", got, step.want)
		}
	}
}

// What a message holds counts against the consumer's budget whatever it consists of, and a used up budget ends the fetching.
func TestBulkyMessagesUseUpTheBudget(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		bulk  func(*kgo.Record)
		least int64 // bytes that one such message holds
	}{
		{"10,000 headers", func(r *kgo.Record) {
			for i := range 10_000 {
				r.Headers = append(r.Headers, kgo.RecordHeader{Key: "h" + strconv.Itoa(i), Value: []byte("x")})
			}
		}, 10_000 * (2 + 1 + 40)}, // a header is a string and a slice: 40 bytes beside what they point to
		{"over the size limit", func(r *kgo.Record) { r.Value = []byte(strings.Repeat("x", 512<<10)) }, 512 << 10},
		{"a long key", func(r *kgo.Record) { r.Key = []byte(strings.Repeat("x", 512<<10)) }, 512 << 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const budget = 4 << 20
			c, client := newIdle(t, Options{MaxPayload: 1 << 10, MaxBufferedBytes: budget})
			p := newPartition(topicPartition{topic: "orders"})
			added := int64(0)
			for paused := false; !paused; added++ {
				if added > budget/tt.least {
					t.Fatalf("%d messages of %d bytes are in memory and the partition is not paused: the budget is %d", added, tt.least, budget)
				}
				rec := &kgo.Record{Topic: "orders", Offset: added, Key: []byte("u1"), Value: []byte("{}"), Headers: []kgo.RecordHeader{
					{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "ce_type", Value: []byte("order.placed.v1")},
				}}
				tt.bulk(rec)
				c.addAll(t.Context(), client, p, []*kgo.Record{rec}, []*item{c.decoder().decode(rec, time.Now())})
				paused = p.paused
			}
			if added < 2 {
				t.Errorf("paused after %d messages, want the budget used", added)
			}
		})
	}
}

func TestWhyNamesTheBudgetThatPausedAPartitionAndItsOldestMessage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		opts    Options
		offsets []int64
		says    string
	}{
		{"messages", Options{MaxBuffered: 3}, []int64{7, 8, 9}, "3 of its messages are in memory, the limit is 3"},
		{"offsets", Options{MaxBuffered: 3}, []int64{7, 36}, "its newest message is 30 offsets ahead of the oldest unfinished one, the limit is 30"},
		{"bytes", Options{MaxBufferedBytes: 100}, []int64{7}, "bytes of all partitions are in memory, the limit is 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, client := newIdle(t, tt.opts)
			c.joined.Store(true)
			at := topicPartition{"orders", 3}
			p := newPartition(at)
			c.partitions[at] = p
			if why := c.Why(); len(why) != 0 {
				t.Fatalf("Why() = %q with nothing in memory, want nothing", why)
			}
			for _, offset := range tt.offsets {
				rec := &kgo.Record{Topic: at.topic, Partition: at.partition, Offset: offset, Key: []byte("secret-user"), Value: []byte("{}"), Headers: []kgo.RecordHeader{
					{Key: "ce_id", Value: []byte("0190163d-8694-739b-aea5-966c26f8ad91")}, {Key: "ce_type", Value: []byte("order.placed.v1")},
				}}
				c.addAll(t.Context(), client, p, []*kgo.Record{rec}, []*item{c.decoder().decode(rec, time.Now())})
			}
			why := strings.Join(c.Why(), "\n")
			for _, want := range []string{
				"orders partition 3 is not fetched since ", tt.says,
				"; its oldest is message 0190163d-8694-739b-aea5-966c26f8ad91 (orders partition 3 offset 7), which waits for a worker since ",
			} {
				if !strings.Contains(why, want) {
					t.Errorf("Why() = %q, want it to say %q", why, want)
				}
			}
			if strings.Contains(why, "secret") {
				t.Errorf("Why() = %q names a key", why)
			}
		})
	}
}
