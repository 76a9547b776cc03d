package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
	"github.com/orderflow-dev/orderflow/outbox"
)

// Config is what the relay service needs to run.
type Config struct {
	// Sources are the outboxes to publish from. At least one.
	Sources []Source
	// Brokers are Kafka's addresses, host:port.
	Brokers []string
	// OpsAddr is where /healthz, /readyz and /metrics are served. Empty: nowhere.
	OpsAddr string
	// Wait is how long a start may wait for Postgres, Kafka and the topics together. Default 60 s, negative: one try.
	Wait time.Duration
}

// Source is one outbox.
type Source struct {
	// Schema holds the outbox, and names it in logs and metrics.
	Schema string
	// DatabaseURL connects as the schema's relay role.
	DatabaseURL string
	// Kick makes the relay look for messages at once. Optional: without it they wait for the next poll, 50 ms at most.
	Kick <-chan struct{}
}

// Run publishes until ctx ends. It waits for what it needs, and returns an error when it cannot start: no Postgres, no Kafka
// or missing topics within Config.Wait, or at once topics with another number of partitions. Once it runs, outages are
// waited out.
func Run(ctx context.Context, log *slog.Logger, cfg Config) (err error) {
	if len(cfg.Sources) == 0 {
		return errors.New("the relay has no outbox to publish from")
	}
	tel, err := telemetry.New("relay")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Close(context.WithoutCancel(ctx))) }()
	var checks []httpserver.Check
	var lines []*line
	defer func() {
		for _, l := range lines {
			l.close()
		}
	}()
	patience := await.New(log, cfg.Wait)
	if err := kafka.Await(ctx, patience, cfg.Brokers); err != nil {
		return err
	}
	for _, source := range cfg.Sources {
		l, err := open(ctx, log, cfg.Brokers, source, patience, tel)
		if err != nil {
			return err
		}
		lines = append(lines, l)
		checks = append(checks, httpserver.Check{Name: "outbox " + source.Schema, Ready: l.ready})
	}
	return httpserver.NewOps(tel.Metrics, checks...).Around(ctx, log, cfg.OpsAddr, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		for _, l := range lines {
			group.Go(func() error { return l.relay.Run(ctx) })
			group.Go(func() error { l.passOn(ctx); return nil })
		}
		return group.Wait()
	})
}

// line is the way from one outbox to Kafka.
type line struct {
	pool   *pgxpool.Pool
	client *kgo.Client
	relay  *outbox.Relay
	kick   <-chan struct{}
}

func open(ctx context.Context, log *slog.Logger, brokers []string, source Source, patience *await.Patience, tel *telemetry.Telemetry) (_ *line, err error) {
	l := &line{kick: source.Kick}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l.pool, err = postgres.Open(ctx, source.DatabaseURL, postgres.Options{
		ApplicationName: "relay " + source.Schema,
		MaxConns:        4, // see outbox.NewRelay
		Wait:            patience,
	})
	if err != nil {
		return nil, fmt.Errorf("outbox of %s: %w", source.Schema, err)
	}
	l.client, err = kgo.NewClient(append(kafka.Options(brokers, log), outbox.KafkaOptions()...)...)
	if err != nil {
		return nil, fmt.Errorf("set up the Kafka client: %w", err)
	}
	l.relay, err = outbox.NewRelay(l.pool, outbox.NewKafkaPublisher(l.client), outbox.RelayOptions{
		Schema: source.Schema,
		Log:    log,
		Meter:  tel.Meter,
	})
	return l, err
}

// passOn turns kicks of the process into kicks of the relay.
func (l *line) passOn(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kick: // nil, and so never ready, without a kicker
			l.relay.Kick()
		}
	}
}

func (l *line) ready(context.Context) error { return l.relay.Healthy() }

func (l *line) close() {
	if l.client != nil {
		l.client.Close()
	}
	if l.pool != nil {
		l.pool.Close()
	}
}
