package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// logbook is a log that a test reads while it is written.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) await(t *testing.T, want string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		said := l.b.String()
		l.mu.Unlock()
		if strings.Contains(said, want) {
			return
		}
		select {
		case <-limit:
			t.Fatalf("the log has no %q within 20 s:\n%s", want, said)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestAwaitWaitsForABrokerAndThenForTopicsThatComeLate(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	brokers := []string{ln.Addr().String()}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	var log logbook
	done := make(chan error, 1)
	go func() {
		done <- kafka.Await(t.Context(), await.New(slog.New(slog.NewTextHandler(&log, nil)), time.Minute), brokers)
	}()
	log.await(t, "for=kafka")
	log.await(t, brokers[0])
	kafkatest.NewFake(t, kfake.Ports(port))
	log.await(t, "for=topics")
	log.await(t, "orderflow migrate")
	if err := kafka.EnsureTopics(t.Context(), brokers, kafka.TopicOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Await = %v, want nil once all is there", err)
	}
}

func TestAwaitGivesUp(t *testing.T) {
	t.Parallel()
	nobody := func(*testing.T) []string { return []string{"127.0.0.1:1"} }
	empty := func(t *testing.T) []string { return kafkatest.New(t).Addrs }
	other := func(t *testing.T) []string {
		broker := kafkatest.New(t)
		broker.Create(t, 6, nil, event.Shipments)
		return broker.Addrs
	}
	for _, tc := range []struct {
		name    string
		brokers func(*testing.T) []string
		limit   time.Duration
		want    error
	}{
		{"nobody answers in time", nobody, 300 * time.Millisecond, kafka.ErrUnreachable},
		{"the topics do not come in time", empty, 300 * time.Millisecond, kafka.ErrMissingTopic},
		{"an interrupt ends the wait", nobody, time.Hour, context.Canceled},
		{"another partition count ends it at once", other, time.Hour, kafka.ErrPartitionCount},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			brokers := tc.brokers(t)
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			if errors.Is(tc.want, context.Canceled) {
				interrupt()
			}
			if err := kafka.Await(ctx, await.New(nil, tc.limit), brokers); !errors.Is(err, tc.want) {
				t.Errorf("Await = %v, want %v", err, tc.want)
			}
		})
	}
}
