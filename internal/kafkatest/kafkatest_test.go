package kafkatest_test

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadReturnsWhatWasProducedInOrder(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, "orders")
	broker.Produce(t,
		&kgo.Record{Topic: "orders", Key: []byte("alice"), Value: []byte("1")},
		&kgo.Record{Topic: "orders", Key: []byte("alice"), Value: []byte("2")},
	)
	got := broker.Read(t, 2, "orders")
	if len(got) != 2 || string(got[0].Value) != "1" || string(got[1].Value) != "2" {
		t.Errorf("Read = %v, want values 1 and 2", got)
	}
}

func TestProducingToAMissingTopicFails(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, "orders")
	err := broker.Client(t).ProduceSync(t.Context(), &kgo.Record{Topic: "elsewhere"}).FirstErr()
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("produce to a missing topic = %v, want %v", err, kerr.UnknownTopicOrPartition)
	}
}
