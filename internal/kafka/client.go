package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrUnreachable is returned when no broker answers.
var ErrUnreachable = errors.New("kafka is not reachable")

// Options returns what every client needs: where to connect, how long to try, where to log. log may be nil.
func Options(brokers []string, log *slog.Logger) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(brokers...),
		kgo.ClientID("orderflow"),
		kgo.DialTimeout(5 * time.Second),
		kgo.RetryTimeout(15 * time.Second),
		// A topic that is gone for a moment, as in a rolling restart, is not an unknown topic yet.
		kgo.UnknownTopicRetries(8),
	}
	if log != nil {
		opts = append(opts, kgo.WithLogger(clientLogger{log}))
	}
	return opts
}

// Ping asks a broker for an answer and says what to do when there is none.
func Ping(ctx context.Context, client *kgo.Client, brokers []string) error {
	if err := client.Ping(ctx); err != nil {
		return fmt.Errorf("connect to Kafka at %s: %w: start it, or correct the addresses (`orderflow dev` brings its own): %w",
			strings.Join(brokers, ","), ErrUnreachable, err)
	}
	return nil
}

// clientLogger passes the client's warnings and errors on. What it tells at lower levels is about its own work.
type clientLogger struct{ log *slog.Logger }

func (clientLogger) Level() kgo.LogLevel { return kgo.LogLevelWarn }

func (l clientLogger) Log(_ kgo.LogLevel, msg string, keyvals ...any) {
	attrs := []slog.Attr{slog.String("said", msg)}
	for i := 0; i+1 < len(keyvals); i += 2 {
		if name, ok := keyvals[i].(string); ok {
			attrs = append(attrs, slog.Any(attrName(name), keyvals[i+1]))
		}
	}
	// The client retries by itself whatever it logs, so even its errors are warnings to us.
	l.log.LogAttrs(context.Background(), slog.LevelWarn, "kafka client", attrs...)
}

// attrName renames the client's keys to ours.
func attrName(name string) string {
	if name == "err" {
		return "error"
	}
	return strings.ReplaceAll(name, " ", "_")
}
