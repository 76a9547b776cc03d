package kafka_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEnsureTopicsCreatesThemForTheClusterAtHand(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		brokers int
		opts    kafka.TopicOptions
		configs map[string]string
		copies  int
	}{
		{"one broker keeps one copy", 1, kafka.TopicOptions{}, map[string]string{"min.insync.replicas": "1", "retention.ms": "604800000"}, 1},
		{"three brokers keep three copies and ask two", 3, kafka.TopicOptions{}, map[string]string{"min.insync.replicas": "2", "retention.ms": "604800000"}, 3},
		{"five brokers keep three copies", 5, kafka.TopicOptions{}, map[string]string{"min.insync.replicas": "2"}, 3},
		{"the caller's settings win", 1, kafka.TopicOptions{Configs: map[string]string{"retention.bytes": "1048576", "retention.ms": "60000"}},
			map[string]string{"retention.bytes": "1048576", "retention.ms": "60000"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			broker := cluster(t, tt.brokers)
			for range 2 { // the second time finds everything in place
				if err := kafka.EnsureTopics(t.Context(), broker.Addrs, tt.opts); err != nil {
					t.Fatalf("EnsureTopics: %v", err)
				}
			}
			client := broker.Client(t)
			if err := kafka.CheckTopics(t.Context(), client); err != nil {
				t.Errorf("CheckTopics after EnsureTopics = %v, want nil", err)
			}
			admin := kadm.NewClient(client)
			details, err := admin.ListTopics(t.Context(), event.Orders)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(details[event.Orders].Partitions[0].Replicas); got != tt.copies {
				t.Errorf("copies of %s = %d, want %d", event.Orders, got, tt.copies)
			}
			configs, err := admin.DescribeTopicConfigs(t.Context(), event.Orders)
			if err != nil {
				t.Fatal(err)
			}
			for _, config := range configs[0].Configs {
				if want, checked := tt.configs[config.Key]; checked && config.MaybeValue() != want {
					t.Errorf("%s of %s = %s, want %s", config.Key, event.Orders, config.MaybeValue(), want)
				}
			}
		})
	}
}

// cluster returns a cluster of that many brokers. Those of Apache Kafka that tests run on have one; its topics on three are
// tested with package localkafka.
func cluster(t *testing.T, brokers int) *kafkatest.Broker {
	t.Helper()
	if brokers > 1 {
		return kafkatest.NewFake(t, kfake.NumBrokers(brokers)).Broker
	}
	return kafkatest.New(t)
}

func TestEnsureTopicsByTwoAtOnceIsFine(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t)
	var both errgroup.Group
	for range 4 {
		both.Go(func() error { return kafka.EnsureTopics(t.Context(), broker.Addrs, kafka.TopicOptions{}) })
	}
	if err := both.Wait(); err != nil {
		t.Errorf("EnsureTopics four times at once = %v, want nil", err)
	}
}

// F15: with another partition count keys move, and their order is lost.
func TestAChangedPartitionCountIsRefused(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t)
	broker.Create(t, 13, nil, event.Orders)
	broker.Create(t, 6, nil, event.Shipments)
	err := kafka.EnsureTopics(t.Context(), broker.Addrs, kafka.TopicOptions{})
	for _, want := range []string{"orders has 13 partitions, want 12", "shipments has 6 partitions, want 12"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("EnsureTopics = %v, want it to contain %q", err, want)
		}
	}
	client := broker.Client(t)
	if err := kafka.CheckTopics(t.Context(), client); !errors.Is(err, kafka.ErrPartitionCount) {
		t.Errorf("CheckTopics = %v, want ErrPartitionCount", err)
	}
	details, err := kadm.NewClient(client).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := details.Names(); len(got) != 2 {
		t.Errorf("topics after a refused EnsureTopics = %v, want the two that were there", got)
	}
}

func TestCheckTopicsNamesEveryMissingTopic(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders, event.OrdersFailed)
	err := kafka.CheckTopics(t.Context(), broker.Client(t))
	if !errors.Is(err, kafka.ErrMissingTopic) {
		t.Fatalf("CheckTopics = %v, want ErrMissingTopic", err)
	}
	for _, want := range []string{"orders.completed", "shipments", "email.dlq", "orderflow migrate"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("CheckTopics = %v, want it to contain %q", err, want)
		}
	}
}

func TestEnsureTopicsSaysWhereKafkaWasExpected(t *testing.T) {
	t.Parallel()
	err := kafka.EnsureTopics(t.Context(), []string{"127.0.0.1:1"}, kafka.TopicOptions{Wait: await.New(nil, 100*time.Millisecond)})
	if !errors.Is(err, kafka.ErrUnreachable) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("EnsureTopics without a broker = %v, want ErrUnreachable and the address", err)
	}
}

func TestDescribeShowsWhoReadsWhatAndHowFarBehind(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	produce(t, broker, 3, 3, 3, 5)
	ctx := t.Context()

	consumer := broker.Client(t, kgo.ConsumerGroup("order"), kgo.ConsumeTopics(event.Orders), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for read := 0; read < 4; {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		read += fetches.NumRecords()
	}
	offsets := map[string]map[int32]kgo.EpochOffset{event.Orders: {3: {Epoch: -1, Offset: 1}}}
	consumer.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, _ *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			t.Errorf("commit: %v", err)
		}
	})

	group, err := kafka.Describe(ctx, broker.Client(t), "order")
	if err != nil {
		t.Fatal(err)
	}
	if group.State != "Stable" || len(group.Members) != 1 || group.Members[0].Partitions != kafkatest.Partitions {
		t.Errorf("group = %s with members %+v, want Stable with one member of %d partitions", group.State, group.Members, kafkatest.Partitions)
	}
	if len(group.Partitions) != kafkatest.Partitions {
		t.Fatalf("partitions = %d, want %d", len(group.Partitions), kafkatest.Partitions)
	}
	for partition, want := range map[int]string{
		3: `{"committed":1,"end":3,"lag":2}`,
		5: `{"committed":null,"end":1,"lag":1}`,
		0: `{"committed":null,"end":0,"lag":0}`,
	} {
		p := group.Partitions[partition]
		got, err := json.Marshal(struct {
			Committed *int64 `json:"committed"`
			End       *int64 `json:"end"`
			Lag       *int64 `json:"lag"`
		}{p.Committed, p.End, p.Lag})
		if err != nil || string(got) != want {
			t.Errorf("partition %d = %s, %v; want %s", partition, got, err, want)
		}
	}
	if lag, ok := group.Lag(); lag != 3 || !ok {
		t.Errorf("Lag() = %d, %v; want 3, true", lag, ok)
	}
}

func TestAnUnknownLagIsNotZero(t *testing.T) {
	t.Parallel()
	broker := kafkatest.NewFake(t, kfake.SeedTopics(kafkatest.Partitions, event.Orders))
	produce(t, broker.Broker, 3)
	commit(t, broker.Broker, "order", 3, 1)
	broker.Cluster.ControlKey(int16(kmsg.ListOffsets), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster.KeepControl()
		return offsetsUnknown(request.(*kmsg.ListOffsetsRequest)), nil, true
	})
	group, err := kafka.Describe(t.Context(), broker.Client(t), "order")
	if err != nil {
		t.Fatal(err)
	}
	if len(group.Partitions) == 0 {
		t.Fatal("the group has no partitions: the test proves nothing")
	}
	for _, p := range group.Partitions {
		if p.Lag != nil || p.End != nil || p.Error == "" {
			t.Errorf("partition %d whose end is unknown: end %v, lag %v, error %q; want neither number and a reason", p.Partition, p.End, p.Lag, p.Error)
		}
	}
	if lag, ok := group.Lag(); ok {
		t.Errorf("Lag() = %d, known; want unknown", lag)
	}
}

// offsetsUnknown answers that no offset could be looked up.
func offsetsUnknown(request *kmsg.ListOffsetsRequest) kmsg.Response {
	response := request.ResponseKind().(*kmsg.ListOffsetsResponse)
	for _, asked := range request.Topics {
		topic := kmsg.NewListOffsetsResponseTopic()
		topic.Topic = asked.Topic
		for _, p := range asked.Partitions {
			partition := kmsg.NewListOffsetsResponseTopicPartition()
			partition.Partition = p.Partition
			partition.ErrorCode = kerr.UnknownServerError.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response
}

func TestDescribeOfNoGroup(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	if _, err := kafka.Describe(t.Context(), broker.Client(t), "nobody"); !errors.Is(err, kafka.ErrNoGroup) {
		t.Errorf("Describe of an unknown group = %v, want ErrNoGroup", err)
	}
	groups, err := kafka.Groups(t.Context(), broker.Client(t))
	if err != nil || len(groups) != 0 {
		t.Errorf("Groups without any = %v, %v; want none", groups, err)
	}
}

func TestGroupsListsThemByName(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	for _, name := range []string{"warehouse", "email"} {
		commit(t, broker, name, 0, 0)
	}
	groups, err := kafka.Groups(t.Context(), broker.Client(t))
	if err != nil || len(groups) != 2 || groups[0].Name != "email" || groups[1].Name != "warehouse" {
		t.Errorf("Groups = %+v, %v; want email and warehouse", groups, err)
	}
}

// produce writes one record to each of the partitions.
func produce(t *testing.T, broker *kafkatest.Broker, partitions ...int32) {
	t.Helper()
	client := broker.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, partition := range partitions {
		record := &kgo.Record{Topic: event.Orders, Partition: partition, Value: []byte("{}")}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// commit sets an offset of a group without members.
func commit(t *testing.T, broker *kafkatest.Broker, group string, partition int32, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(event.Orders, partition, offset, -1)
	responses, err := kadm.NewClient(broker.Client(t)).CommitOffsets(t.Context(), group, offsets)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		t.Fatalf("commit %s: %v", group, err)
	}
}
