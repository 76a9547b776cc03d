package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
)

func newKafka(t *testing.T, broker *kafkatest.Broker) *outbox.KafkaPublisher {
	t.Helper()
	return outbox.NewKafkaPublisher(broker.Client(t, outbox.KafkaOptions()...))
}

// published returns what is in a topic once the relay has nothing left to publish, each partition in order.
func published(t *testing.T, db *pgtest.DB, broker *kafkatest.Broker, topic string) []*kgo.Record {
	t.Helper()
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) })
	ends, err := kadm.NewClient(broker.Client(t)).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ends.Each(func(o kadm.ListedOffset) { n += int(o.Offset) })
	return broker.Read(t, n, topic)
}

// firsts leaves the duplicates out: at least once is the promise, and the order that of first appearances.
func firsts(records []*kgo.Record) (first []*kgo.Record) {
	seen := map[string]bool{}
	for _, r := range records {
		if id := string(r.Headers[1].Value); !seen[id] {
			seen[id] = true
			first = append(first, r)
		}
	}
	return first
}

func TestKafkaReceivesEachKeyInOnePartitionInOrder(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	const keys, each = 20, 40
	for n := range each {
		var batch []outbox.Message
		for k := range keys {
			batch = append(batch, message("orders", fmt.Sprint("user-", k), n))
		}
		write(t, db.Pool, batch...)
	}
	start(t, db.Pool, newKafka(t, broker), outbox.RelayOptions{PageSize: 100, Source: "/orders"})
	next, partition := map[string]int{}, map[string]int32{}
	for _, r := range firsts(published(t, db, broker, "orders")) {
		key := string(r.Key)
		if want := fmt.Sprintf(`{"n":%d}`, next[key]); string(r.Value) != want {
			t.Fatalf("key %s: got %s, want %s", key, r.Value, want)
		}
		if next[key]++; next[key] > 1 && partition[key] != r.Partition {
			t.Fatalf("key %s is in partitions %d and %d", key, partition[key], r.Partition)
		}
		partition[key] = r.Partition
		const want = "ce_specversion ce_id ce_type ce_source ce_time content-type outbox-seq ce_subject"
		if names := headerNames(r.Headers); names != want {
			t.Fatalf("headers are %s", names)
		}
	}
	for k := range keys {
		if key := fmt.Sprint("user-", k); next[key] != each {
			t.Errorf("key %s: %d messages, want %d", key, next[key], each)
		}
	}
}

func headerNames(headers []kgo.RecordHeader) string {
	var names []string
	for _, h := range headers {
		names = append(names, h.Key)
	}
	return strings.Join(names, " ")
}

// F9: Kafka refuses a batch for one record in it. Nothing but that record's key may suffer, and nothing of that key may
// overtake it.
func TestKafkaTopicLimitParksTheCulpritAndFailsNoInnocent(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t)
	broker.Create(t, 1, map[string]string{"max.message.bytes": "3000"}, "orders")
	db := newOutbox(t)
	var batch []outbox.Message
	for n := range 30 {
		batch = append(batch, message("orders", fmt.Sprint("user-", n%10), n/10))
	}
	batch[13].Payload = []byte(incompressible(4000)) // user-3's second
	write(t, db.Pool, batch...)
	start(t, db.Pool, newKafka(t, broker), outbox.RelayOptions{})
	got := map[string]string{}
	for _, r := range firsts(published(t, db, broker, "orders")) {
		got[string(r.Key)] += string(r.Value)
	}
	for k := range 10 {
		key, want := fmt.Sprint("user-", k), `{"n":0}{"n":1}{"n":2}`
		if k == 3 {
			want = `{"n":0}`
		}
		if got[key] != want {
			t.Errorf("key %s: got %s, want %s", key, got[key], want)
		}
	}
	eventually(t, func() error {
		parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
		if err == nil && (len(parked) != 2 || parked[0].Key != "user-3" ||
			!strings.Contains(parked[0].Error, "MESSAGE_TOO_LARGE")) {
			err = fmt.Errorf("parked %+v, want user-3's second and third", parked)
		}
		return err
	})
}

// What Write takes, its topic takes: the limit leaves room for what the relay and Kafka add.
func TestKafkaTakesTheLargestMessageThatWriteTakes(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, "orders")
	broker.Create(t, 1, map[string]string{"max.message.bytes": "20000"}, "small")
	db := newOutbox(t)
	for topic, limit := range map[string]int{"orders": outbox.DefaultMaxBytes, "small": 20_000} {
		w := outbox.Writer{Schema: schema, MaxBytes: limit}
		m := message(topic, "a", 1)
		for m.Payload = []byte(incompressible(limit)); ; m.Payload = m.Payload[:len(m.Payload)-1] {
			err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error { return w.Write(t.Context(), tx, m) })
			if err == nil {
				break
			}
			if !errors.Is(err, outbox.ErrTooLarge) || !strings.Contains(err.Error(), fmt.Sprint("limit ", limit)) {
				t.Fatalf("Write of %d bytes = %v, want ErrTooLarge with the limit", len(m.Payload), err)
			}
		}
		if len(m.Payload) < limit-1000 {
			t.Errorf("%s: the largest payload is %d, want nearly %d", topic, len(m.Payload), limit)
		}
	}
	start(t, db.Pool, newKafka(t, broker), outbox.RelayOptions{Source: "/" + strings.Repeat("x", 119)})
	for _, topic := range []string{"orders", "small"} {
		if n := len(firsts(published(t, db, broker, topic))); n != 1 {
			t.Errorf("%s has %d messages, want the largest", topic, n)
		}
	}
}

// F9 to its end: what a topic's limit has parked goes on in its order once the limit is mended or the message given up,
// and a replay sends nothing that was given up.
func TestKafkaParkedKeysGoOnInOrder(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t)
	broker.Create(t, 1, map[string]string{"max.message.bytes": "3000"}, "orders")
	db := newOutbox(t)
	var batch []outbox.Message
	for n := range 4 {
		for _, key := range []string{"released", "discarded", "good"} {
			m := message("orders", key, n)
			if n == 1 && key != "good" {
				m.Payload = []byte(incompressible(4000))
			}
			batch = append(batch, m)
		}
	}
	write(t, db.Pool, batch...)
	start(t, db.Pool, newKafka(t, broker), outbox.RelayOptions{})
	var parked []outbox.Parked
	eventually(t, func() (err error) {
		if parked, err = outbox.ListParked(t.Context(), db.Pool, schema); err == nil && len(parked) != 6 {
			err = fmt.Errorf("%d messages are parked, want 3 of each key with a large one", len(parked))
		}
		return err
	})
	if parked[0].Key != "discarded" || parked[0].Error == "" {
		t.Fatalf("first of the parked is %+v, want the large one of key discarded", parked[0])
	}
	if err := outbox.Discard(t.Context(), db.Pool, schema, parked[0].ID, "ada", "too large for anybody"); err != nil {
		t.Fatal(err)
	}
	limit := "100000"
	answers, err := kadm.NewClient(broker.Client(t)).AlterTopicConfigs(t.Context(),
		[]kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &limit}}, "orders")
	if err != nil || answers[0].Err != nil {
		t.Fatalf("raise the topic's limit: %v, %+v", err, answers)
	}
	eventually(t, func() error {
		left, err := outbox.ListParked(t.Context(), db.Pool, schema)
		for _, p := range left { // a broker learns of its topics' limits in its own time, and may refuse once more
			if !p.Released {
				_, releaseErr := outbox.Release(t.Context(), db.Pool, schema, p.Topic, p.Key, "ada")
				err = errors.Join(err, releaseErr)
			}
		}
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d messages are still parked", len(left))
		}
		return err
	})
	number, err := outbox.Replay(t.Context(), db.Pool, schema, outbox.ReplayOptions{Since: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		messages, done, err := outbox.ReplayDone(t.Context(), db.Pool, schema, number)
		if err == nil && (!done || messages != 11) {
			err = fmt.Errorf("replay: %d messages, done %v, want all but the one that was discarded", messages, done)
		}
		return err
	})
	records := published(t, db, broker, "orders")
	if len(records) != 22 {
		t.Errorf("%d records, want each of the 11 messages and its replay", len(records))
	}
	got := map[string]string{}
	for _, r := range records {
		got[string(r.Key)] += string(r.Value[:min(len(r.Value), 7)])
	}
	large := incompressible(7)
	for key, second := range map[string]string{"released": large, "discarded": "", "good": `{"n":1}`} {
		once := `{"n":0}` + second + `{"n":2}{"n":3}`
		if got[key] != once+once {
			t.Errorf("key %s: %s, want %s twice", key, got[key], once)
		}
	}
}

// A record above the producer's own limit is refused before it is sent, when later ones of its key may be on their way.
func TestKafkaRecordAboveTheBatchLimitIsNotOvertaken(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	batch := []outbox.Message{
		message("orders", "a", 0), message("orders", "a", 1), message("orders", "a", 2), message("orders", "b", 0),
	}
	batch[1].Payload = make([]byte, 1_200_000)
	if err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
		return outbox.Writer{Schema: schema, MaxBytes: 2_000_000}.Write(t.Context(), tx, batch...)
	}); err != nil {
		t.Fatal(err)
	}
	start(t, db.Pool, newKafka(t, broker), outbox.RelayOptions{})
	eventually(t, func() error {
		parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
		if err == nil && len(parked) != 2 {
			err = fmt.Errorf("%d messages are parked, want the large one and the one behind it", len(parked))
		}
		return err
	})
	got := map[string]string{}
	for _, r := range firsts(published(t, db, broker, "orders")) {
		got[string(r.Key)] += string(r.Value)
	}
	if got["a"] != `{"n":0}` || got["b"] != `{"n":0}` {
		t.Errorf("published %v, want the first of each key", got)
	}
}

// A client that does not know the topic yet hands records on one by one, and some of them are on their way before the last
// one is in the batch.
func TestKafkaFirstPageOfATopicIsNotOvertaken(t *testing.T) {
	t.Parallel()
	topics := []string{"known", "t0", "t1", "t2", "t3", "t4"}
	broker := kafkatest.New(t)
	broker.Create(t, 1, map[string]string{"max.message.bytes": "300000"}, topics...)
	publisher := newKafka(t, broker)
	if errs := publisher.Publish(t.Context(), []outbox.Record{{Topic: "known", Key: "a", Value: []byte("1")}}); errs != nil {
		t.Fatal(errs)
	}
	large := []byte(incompressible(400_000))
	for _, topic := range topics[1:] {
		page := make([]outbox.Record, 5000)
		for i := range page {
			page[i] = outbox.Record{Topic: topic, Key: "a", Value: []byte("1")}
		}
		page[0].Value = large
		errs := publisher.Publish(t.Context(), page)
		if !errors.Is(errs[0], outbox.ErrRefused) {
			t.Errorf("%s: the first record: %v, want it refused", topic, errs[0])
		}
		if i := slices.Index(errs, nil); i >= 0 {
			t.Errorf("%s: record %d is acknowledged although the first one was refused", topic, i)
		}
	}
}

// incompressible is text that no codec makes smaller by half.
func incompressible(n int) string {
	var b strings.Builder
	for x := uint64(88172645463325252); b.Len() < n; {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		fmt.Fprintf(&b, "%x", x)
	}
	return b.String()[:n]
}

func TestKafkaUnknownTopicParksItsKeysAndOthersFlow(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	publisher := newKafka(t, broker)
	publisher.SetUnknownAfter(500 * time.Millisecond)
	write(t, db.Pool, message("nowhere", "a", 1), message("orders", "a", 1), message("nowhere", "a", 2))
	start(t, db.Pool, publisher, outbox.RelayOptions{})
	broker.Read(t, 1, "orders")
	eventually(t, func() error {
		parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
		if err == nil && (len(parked) != 2 || parked[0].Topic != "nowhere") {
			err = fmt.Errorf("parked %+v, want both messages to nowhere", parked)
		}
		return err
	})
}

// Rows that SQL wrote past Write's checks, to names that no Kafka takes.
func TestKafkaTopicThatCannotBeParksItsKeysAndOthersFlow(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	impossible := []string{"", "..", "two words", strings.Repeat("x", 250)}
	for _, topic := range impossible {
		if _, err := db.Pool.Exec(t.Context(), `
			INSERT INTO orders.outbox (id, topic, key, type, content_type, payload)
			VALUES (gen_random_uuid(), $1, 'a', 't', 'c', '{}')`, topic); err != nil {
			t.Fatal(err)
		}
	}
	write(t, db.Pool, message("orders", "a", 1))
	publisher := newKafka(t, broker)
	publisher.SetUnknownAfter(500 * time.Millisecond)
	start(t, db.Pool, publisher, outbox.RelayOptions{})
	broker.Read(t, 1, "orders")
	eventually(t, func() error {
		parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
		if err == nil && len(parked) != len(impossible) {
			err = fmt.Errorf("%d messages are parked, want %d: %+v", len(parked), len(impossible), parked)
		}
		return err
	})
}

// triesOf reports the failed pages of a publisher.
type triesOf struct {
	outbox.Publisher
	failed chan error
}

func (p triesOf) Publish(ctx context.Context, page []outbox.Record) []error {
	errs := p.Publisher.Publish(ctx, page)
	if errs != nil {
		select {
		case p.failed <- errors.Join(errs...):
		default:
		}
	}
	return errs
}

func TestKafkaTopicThatIsUnknownForAMomentIsWaitedFor(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	publisher := newKafka(t, broker)
	publisher.SetUnknownAfter(time.Hour)
	tries := triesOf{publisher, make(chan error)}
	write(t, db.Pool, message("late", "a", 1), message("orders", "a", 1), message("late", "a", 2))
	start(t, db.Pool, tries, outbox.RelayOptions{})
	for range 2 {
		if err := <-tries.failed; !errors.Is(err, kerr.UnknownTopicOrPartition) {
			t.Fatalf("publish to a topic that is not there = %v, want %v", err, kerr.UnknownTopicOrPartition)
		}
	}
	if _, err := kadm.NewClient(broker.Client(t)).CreateTopic(t.Context(), 1, 1, nil, "late"); err != nil {
		t.Fatal(err)
	}
	for i, r := range broker.Read(t, 2, "late") {
		if want := fmt.Sprintf(`{"n":%d}`, i+1); string(r.Value) != want {
			t.Errorf("record %d is %s, want %s", i, r.Value, want)
		}
	}
	if parked, err := outbox.ListParked(t.Context(), db.Pool, schema); err != nil || len(parked) != 0 {
		t.Errorf("parked %v (%v), want none", parked, err)
	}
}

// F12: the broker has appended the batch, and its answer is lost.
func TestKafkaLostAnswerIsADuplicateAtMost(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.NewFake(t, kfake.SeedTopics(1, "orders"))
	lost := 0
	broker.Cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster.KeepControl()
		if lost++; lost%3 == 0 {
			return nil, errors.New("connection cut"), true
		}
		return nil, nil, false
	})
	start(t, db.Pool, newKafka(t, broker.Broker), outbox.RelayOptions{})
	const messages = 20
	for n := range messages {
		write(t, db.Pool, message("orders", "a", n))
	}
	next := 0
	for _, r := range firsts(published(t, db, broker.Broker, "orders")) {
		if string(r.Value) == fmt.Sprintf(`{"n":%d}`, next) {
			next++
		}
	}
	if next != messages {
		t.Errorf("%d messages in order, want %d", next, messages)
	}
}

// A page that cannot be acknowledged must be over when its time is, or it would outlive the lease.
func TestKafkaPublishEndsWithItsContextWhenTheBrokerHangs(t *testing.T) {
	t.Parallel()
	broker := kafkatest.NewFake(t, kfake.SeedTopics(1, "orders"))
	publisher := newKafka(t, broker.Broker)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // last, so it runs before the client and the broker are closed
	broker.Cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster.KeepControl()
		<-release // whoever asks it anything waits as well
		return nil, nil, false
	})
	for _, tt := range []struct {
		name string
		page []outbox.Record
	}{
		{"in flight", []outbox.Record{{Topic: "orders", Key: "a", Value: []byte("1")}}},
		{"unknown topic", []outbox.Record{{Topic: "nowhere", Key: "a", Value: []byte("1")}}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		began := time.Now()
		errs := publisher.Publish(ctx, tt.page)
		cancel()
		if took := time.Since(began); took > 20*time.Second || len(errs) != 1 || errs[0] == nil {
			t.Errorf("%s: Publish = %v after %v, want an error soon after 1 s", tt.name, errs, took)
		}
	}
}

// Nobody leads the partition, so the client waits for metadata most of the time, and so does it when the page's time is over.
func TestKafkaPublishEndsWithItsContextWhenThePartitionHasNoLeader(t *testing.T) {
	t.Parallel()
	broker := kafkatest.NewFake(t, kfake.SeedTopics(1, "orders"))
	publisher := newKafka(t, broker.Broker)
	broker.Cluster.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster.KeepControl()
		return notLeader(request.(*kmsg.ProduceRequest)), nil, true
	})
	page := []outbox.Record{{Topic: "orders", Key: "a", Value: []byte("1")}}
	for n := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		ended := make(chan []error, 1)
		go func() { ended <- publisher.Publish(ctx, page) }()
		select {
		case errs := <-ended:
			if len(errs) != 1 || errs[0] == nil {
				t.Errorf("page %d: Publish = %v, want an error", n, errs)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("page %d: Publish has not ended 20 s after its context", n)
		}
		cancel()
	}
}

func notLeader(request *kmsg.ProduceRequest) *kmsg.ProduceResponse {
	response := request.ResponseKind().(*kmsg.ProduceResponse)
	for _, asked := range request.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.TopicID = asked.Topic, asked.TopicID
		for _, p := range asked.Partitions {
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, kerr.NotLeaderForPartition.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response
}
