package kafka_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// produceAt writes records to a partition, one with each timestamp.
func produceAt(t *testing.T, broker *kafkatest.Broker, partition int32, times ...time.Time) {
	t.Helper()
	client := broker.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, at := range times {
		record := &kgo.Record{Topic: event.Orders, Partition: partition, Timestamp: at, Value: []byte("{}")}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func describe(t *testing.T, broker *kafkatest.Broker) kafka.Group {
	t.Helper()
	group, err := kafka.Describe(t.Context(), broker.Client(t), "order")
	if err != nil {
		t.Fatal(err)
	}
	return group
}

func partitionOf(t *testing.T, group kafka.Group, id int32) kafka.Partition {
	t.Helper()
	for _, p := range group.Partitions {
		if p.Partition == id {
			return p
		}
	}
	t.Fatalf("the group has no partition %d: %+v", id, group.Partitions)
	return kafka.Partition{}
}

func TestTheAgeIsThatOfTheOldestUnfinishedRecord(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	now := time.Now().Truncate(time.Millisecond)
	hour, minute, second := now.Add(-time.Hour), now.Add(-time.Minute), now.Add(-time.Second)
	produceAt(t, broker, 3, hour, minute, second)
	produceAt(t, broker, 4, hour)
	produceAt(t, broker, 5, second)
	commit(t, broker, "order", 3, 1)
	commit(t, broker, "order", 4, 1)
	group := describe(t, broker)
	for id, want := range map[int32]time.Time{3: minute, 5: second} {
		if p := partitionOf(t, group, id); p.Oldest == nil || !p.Oldest.Equal(want) || p.Error != "" {
			t.Errorf("oldest unfinished record of partition %d = %v, %q; want %v", id, p.Oldest, p.Error, want)
		}
	}
	for _, id := range []int32{0, 4} { // nothing was ever written; all was read
		if age, known := partitionOf(t, group, id).Age(group.At); age != 0 || !known {
			t.Errorf("age of partition %d, in which nothing waits = %v, %v; want 0, known", id, age, known)
		}
	}
	if age, known := group.Age(); age < time.Minute || age > time.Hour || !known {
		t.Errorf("Age() of the group = %v, %v; want that of the oldest record, a minute and what the test took", age, known)
	}
}

func TestWhatIsNotKnownOfALagIsNotZeroAndSaysWhy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		make     func(*testing.T, *kafkatest.Broker)
		lagKnown bool
		want     string
	}{
		{"the committed offset is behind the end", func(t *testing.T, b *kafkatest.Broker) {
			produce(t, b, 3)
			commit(t, b, "order", 3, 9)
		}, false, "orders/3: offset 9 is committed, the end is 1: the topic was made anew"},
		{"retention has removed what was not read", func(t *testing.T, b *kafkatest.Broker) {
			produce(t, b, 3, 3, 3, 3)
			commit(t, b, "order", 3, 1)
			removeBelow(t, b, 3, 3)
		}, false, "orders/3: 2 records were removed unread"},
		{"the record says no time", func(t *testing.T, b *kafkatest.Broker) {
			produceAt(t, b, 3, time.UnixMilli(0))
			commit(t, b, "order", 3, 0)
		}, true, "orders/3: its oldest unfinished record says no time"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			broker := kafkatest.New(t, event.Orders)
			tc.make(t, broker)
			group := describe(t, broker)
			if lag, known := group.Lag(); known != tc.lagKnown {
				t.Errorf("Lag() = %d, known %v; want known %v", lag, known, tc.lagKnown)
			}
			if age, known := group.Age(); known {
				t.Errorf("Age() = %v, known; want unknown", age)
			}
			if why := strings.Join(group.Unknown(), "; "); !strings.Contains(why, tc.want) {
				t.Errorf("Unknown() = %q, want %q in it", why, tc.want)
			}
		})
	}
}

func removeBelow(t *testing.T, broker *kafkatest.Broker, partition int32, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(event.Orders, partition, offset, -1)
	responses, err := kadm.NewClient(broker.Client(t)).DeleteRecords(t.Context(), offsets)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		t.Fatalf("remove records: %v", err)
	}
}

// Apache Kafka forgets what was committed in a topic that is deleted; what is left of the group is nothing to call 0.
func TestADeletedTopicIsNoLagOfZero(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	produce(t, broker, 3)
	commit(t, broker, "order", 3, 1)
	admin := kadm.NewClient(broker.Client(t))
	if _, err := admin.DeleteTopics(t.Context(), event.Orders); err != nil {
		t.Fatal(err)
	}
	for limit := time.After(20 * time.Second); ; {
		left, err := admin.ListTopics(t.Context())
		if err == nil && len(left) == 0 {
			break
		}
		select {
		case <-limit:
			t.Fatalf("the topic is still there after 20 s: %v, %v", left.Names(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	groups, err := kafka.Groups(t.Context(), broker.Client(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range groups {
		if lag, known := group.Lag(); known || len(group.Unknown()) == 0 {
			t.Errorf("Lag() of a group whose topic was deleted = %d, known %v, because of %q; want unknown, and a reason", lag, known, group.Unknown())
		}
	}
}

func TestAnOldestRecordThatCannotBeReadLeavesTheAgeUnknown(t *testing.T) {
	t.Parallel()
	broker := kafkatest.NewFake(t, kfake.SeedTopics(kafkatest.Partitions, event.Orders))
	produce(t, broker.Broker, 3)
	commit(t, broker.Broker, "order", 3, 0)
	broker.Cluster.ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster.KeepControl()
		asked := request.(*kmsg.FetchRequest)
		response := asked.ResponseKind().(*kmsg.FetchResponse)
		response.SessionID = asked.SessionID
		for _, topic := range asked.Topics {
			answer := kmsg.NewFetchResponseTopic()
			answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				partition := kmsg.NewFetchResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
				answer.Partitions = append(answer.Partitions, partition)
			}
			response.Topics = append(response.Topics, answer)
		}
		return response, nil, true
	})
	group := describe(t, broker.Broker)
	if lag, known := group.Lag(); lag != 1 || !known {
		t.Errorf("Lag() = %d, %v; want 1, known", lag, known)
	}
	if age, known := group.Age(); known {
		t.Errorf("Age() = %v, known; want unknown", age)
	}
	if why := fmt.Sprint(group.Unknown()); !strings.Contains(why, "could not be read") || !strings.Contains(why, "TOPIC_AUTHORIZATION_FAILED") {
		t.Errorf("Unknown() = %s, want that the record could not be read, and why", why)
	}
}

func TestFlowOfAGroup(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_800_000_000, 0)
	at := func(seconds int, committed, end int64) kafka.Group {
		lag := end - committed
		return kafka.Group{Name: "order", At: start.Add(time.Duration(seconds) * time.Second),
			Partitions: []kafka.Partition{{Topic: event.Orders, Committed: &committed, End: &end, Lag: &lag}}}
	}
	unknown := at(2, 10, 20)
	unknown.Partitions[0].End = nil
	for _, tc := range []struct {
		name          string
		before, after kafka.Group
		want          kafka.Flow
		known         bool
		drain         time.Duration
		drains        bool
	}{
		{"more is finished than is written", at(0, 0, 100), at(2, 60, 120), kafka.Flow{In: 10, Out: 30}, true, 3 * time.Second, true},
		{"more is written than is finished", at(0, 0, 100), at(2, 20, 180), kafka.Flow{In: 40, Out: 10}, true, 0, false},
		{"nothing moves", at(0, 0, 100), at(2, 0, 100), kafka.Flow{}, true, 0, false},
		{"nothing waits", at(0, 5, 5), at(2, 5, 5), kafka.Flow{}, true, 0, true},
		{"an end is unknown", at(0, 0, 100), unknown, kafka.Flow{}, false, 0, false},
		{"no time has passed", at(0, 0, 100), at(0, 0, 100), kafka.Flow{}, false, 0, false},
		{"the group reads nothing", at(0, 0, 100), kafka.Group{At: start.Add(time.Second)}, kafka.Flow{}, false, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			flow, known := kafka.NewFlow(tc.before, tc.after)
			if flow != tc.want || known != tc.known {
				t.Fatalf("NewFlow = %+v, %v; want %+v, %v", flow, known, tc.want, tc.known)
			}
			if !known {
				return
			}
			lag, _ := tc.after.Lag()
			if d, drains := flow.Drain(lag); d != tc.drain || drains != tc.drains {
				t.Errorf("Drain(%d) = %v, %v; want %v, %v", lag, d, drains, tc.drain, tc.drains)
			}
		})
	}
}
