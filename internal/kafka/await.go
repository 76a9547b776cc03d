package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/await"
)

// tryTimeout bounds one try to reach a broker, so that a wait for one goes on saying so.
const tryTimeout = 5 * time.Second

// Await returns once Kafka can be worked with: a broker answers, and every topic of the order system is there. It is how a
// service starts. A topic whose partition count has changed ends it at once with [ErrPartitionCount]; when the patience is
// over its error is [ErrUnreachable] or [ErrMissingTopic].
func Await(ctx context.Context, patience *await.Patience, brokers []string) error {
	client, err := newAdmin(brokers)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := awaitBroker(ctx, patience, client, brokers); err != nil {
		return err
	}
	return patience.For(ctx, "topics", func(ctx context.Context) error { return checkReached(ctx, client) }, mayCome)
}

// AwaitBroker is [Await] without the topics.
func AwaitBroker(ctx context.Context, patience *await.Patience, brokers []string) error {
	client, err := newAdmin(brokers)
	if err != nil {
		return err
	}
	defer client.Close()
	return awaitBroker(ctx, patience, client, brokers)
}

// newAdmin returns a client that sees a change of the topics at once; others ask for metadata every 5 s at most. It logs
// nothing: who waits says what it waits for.
func newAdmin(brokers []string) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(Options(brokers, nil), kgo.MetadataMinAge(20*time.Millisecond))...)
	if err != nil {
		return nil, fmt.Errorf("set up the Kafka client: %w", err)
	}
	return client, nil
}

func awaitBroker(ctx context.Context, patience *await.Patience, client *kgo.Client, brokers []string) error {
	return patience.For(ctx, "kafka", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, tryTimeout)
		defer cancel()
		return Ping(ctx, client, brokers)
	}, mayCome)
}

// checkReached is [CheckTopics] of a broker that may go away in the middle of it.
func checkReached(ctx context.Context, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	err := CheckTopics(ctx, client)
	if err == nil || errors.Is(err, ErrMissingTopic) || !mayCome(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// mayCome reports whether waiting may help. It does not against a refusal: a wrong partition count, no authorization.
func mayCome(err error) bool {
	if errors.Is(err, ErrPartitionCount) {
		return false
	}
	refusal, refused := errors.AsType[*kerr.Error](err)
	return !refused || refusal.Retriable
}
