package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/event"
)

// ErrPartitionCount is returned for a topic whose partition count is not [event.Partitions].
var ErrPartitionCount = errors.New("partition count differs")

// ErrMissingTopic is returned by [CheckTopics] for a topic that is not there.
var ErrMissingTopic = errors.New("topic is missing")

const retention = 7 * 24 * time.Hour

// TopicOptions says how topics are made. The zero value is right for any cluster.
type TopicOptions struct {
	// Replication is the number of copies. Default: 3, or the number of brokers when there are fewer.
	Replication int
	// Configs are added to, and win over, the settings of every topic that is created.
	Configs map[string]string
	// Wait is how long to wait for brokers that are not there yet. Default nil: one try.
	Wait *await.Patience
}

// EnsureTopics creates the topics of the order system that are missing, with [event.Partitions] partitions and 7 days of
// retention. With three copies a write counts once two have it. Topics that are there are left as they are; one with
// another partition count is refused, and then none is created.
func EnsureTopics(ctx context.Context, brokers []string, opts TopicOptions) error {
	client, err := newAdmin(brokers)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := awaitBroker(ctx, opts.Wait, client, brokers); err != nil {
		return err
	}
	missing, err := inspectTopics(ctx, client)
	if err != nil {
		return err
	}
	if len(missing) == 0 {
		return nil
	}
	return createTopics(ctx, client, missing, opts)
}

// CheckTopics reports, all at once, what is wrong with the topics of the order system: a service that started without
// them would wait silently, and one that started with another partition count would break the order of a key.
func CheckTopics(ctx context.Context, client *kgo.Client) error {
	missing, err := inspectTopics(ctx, client)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s; run `orderflow migrate`", ErrMissingTopic, strings.Join(missing, ", "))
	}
	return nil
}

// inspectTopics returns the topics that are missing, and an error that names every topic with a wrong partition count.
func inspectTopics(ctx context.Context, client *kgo.Client) ([]string, error) {
	details, err := kadm.NewClient(client).ListTopics(ctx, event.Topics()...)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var missing []string
	var wrong []error
	for _, topic := range event.Topics() {
		detail, listed := details[topic]
		switch {
		case !listed || errors.Is(detail.Err, kerr.UnknownTopicOrPartition):
			missing = append(missing, topic)
		case detail.Err != nil:
			wrong = append(wrong, fmt.Errorf("look at topic %s: %w", topic, detail.Err))
		case len(detail.Partitions) != event.Partitions:
			wrong = append(wrong, fmt.Errorf("topic %s has %d partitions, want %d: %w; keys are on other partitions than before, so their order is lost: move to a new topic name or a restored topic",
				topic, len(detail.Partitions), event.Partitions, ErrPartitionCount))
		}
	}
	return missing, errors.Join(wrong...)
}

func createTopics(ctx context.Context, client *kgo.Client, topics []string, opts TopicOptions) error {
	admin := kadm.NewClient(client)
	if opts.Replication == 0 {
		nodes, err := admin.ListBrokers(ctx)
		if err != nil {
			return fmt.Errorf("count brokers: %w", err)
		}
		opts.Replication = min(3, len(nodes))
	}
	configs := map[string]*string{
		"retention.ms":        kadm.StringPtr(strconv.FormatInt(retention.Milliseconds(), 10)),
		"min.insync.replicas": kadm.StringPtr("1"),
		// A relay or consumer must be able to wait for its turn in a backlog: nothing but age removes a record.
		"cleanup.policy": kadm.StringPtr("delete"),
	}
	if opts.Replication >= 3 {
		configs["min.insync.replicas"] = kadm.StringPtr("2")
	}
	for _, name := range slices.Sorted(maps.Keys(opts.Configs)) {
		configs[name] = kadm.StringPtr(opts.Configs[name])
	}
	responses, err := admin.CreateTopics(ctx, event.Partitions, int16(opts.Replication), configs, topics...)
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	var failed []error
	for _, response := range responses.Sorted() {
		// Another migrate may run at the same time; what it created is checked below.
		if response.Err != nil && !errors.Is(response.Err, kerr.TopicAlreadyExists) {
			failed = append(failed, fmt.Errorf("create topic %s: %w: %s", response.Topic, response.Err, response.ErrMessage))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return waitForTopics(ctx, client)
}

// waitForTopics waits until every broker has heard of the new topics: a service that starts right after the migration must
// find them, whichever broker it asks.
func waitForTopics(ctx context.Context, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := knownEverywhere(ctx, client)
		if err == nil {
			// The client itself remembers for a moment that they were missing.
			if err = CheckTopics(ctx, client); !errors.Is(err, ErrMissingTopic) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the new topics: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// knownEverywhere reports a broker that does not know a topic yet. Kafka answers the creation of a topic once its controller
// has decided; each broker hears of that in its own time.
func knownEverywhere(ctx context.Context, client *kgo.Client) error {
	nodes, err := kadm.NewClient(client).ListBrokers(ctx)
	if err != nil {
		return fmt.Errorf("list brokers: %w", err)
	}
	for _, node := range nodes {
		request := kmsg.NewPtrMetadataRequest()
		for _, topic := range event.Topics() {
			asked := kmsg.NewMetadataRequestTopic()
			asked.Topic = kmsg.StringPtr(topic)
			request.Topics = append(request.Topics, asked)
		}
		answer, err := client.Broker(int(node.NodeID)).Request(ctx, request)
		if err != nil {
			return fmt.Errorf("ask broker %d for the topics: %w", node.NodeID, err)
		}
		for _, topic := range answer.(*kmsg.MetadataResponse).Topics {
			if err := kerr.ErrorForCode(topic.ErrorCode); err != nil {
				return fmt.Errorf("broker %d, topic %s: %w", node.NodeID, *topic.Topic, err)
			}
		}
	}
	return nil
}
