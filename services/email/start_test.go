package email

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// F15: where a topic's partition count has changed, keys have moved, and a user's order with them.
func TestRunRefusesToStartWhereKeysWouldMove(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for _, tc := range []struct {
		name       string
		topics     []string
		partitions int32
		wait       time.Duration
		want       error
	}{
		{"a topic is missing", event.Topics()[1:], event.Partitions, -1, kafka.ErrMissingTopic},
		{"the topics have another partition count", event.Topics(), event.Partitions + 1, time.Hour, kafka.ErrPartitionCount},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			broker := kafkatest.New(t)
			broker.Create(t, tc.partitions, nil, tc.topics...)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := Run(ctx, slog.New(slog.DiscardHandler), Config{DatabaseURL: db.RoleURL("email"), Brokers: broker.Addrs, Wait: tc.wait})
			if !errors.Is(err, tc.want) {
				t.Errorf("Run = %v, want %v", err, tc.want)
			}
		})
	}
}
