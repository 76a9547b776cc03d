package warehouse

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
)

// Config is what the warehouse service works with.
type Config struct {
	// DatabaseURL connects as role warehouse.
	DatabaseURL string
	// Brokers are Kafka's addresses, host:port.
	Brokers []string
	// InstanceID makes the process a static member of its consumer group; see inbox.Options. Empty: a dynamic one.
	InstanceID string
	// OpsAddr is where /healthz, /readyz and /metrics are served. Empty: nowhere.
	OpsAddr string
	// Wait is how long a start may wait for Postgres, Kafka and the topics together. Default 60 s, negative: one try.
	Wait time.Duration
	// AfterCommit is called after messages were committed to the outbox, to have them published at once. Optional; it
	// must not block.
	AfterCommit func()
}

// Routes returns the handlers of the service, for who runs them without the rest of it.
func Routes() []inbox.Route { return routes() }

// Run ships until ctx ends. It waits for what it needs, and returns an error when it cannot start: no Postgres, no Kafka or
// missing topics within Config.Wait, or at once topics with another number of partitions. Once it runs, outages are waited
// out.
func Run(ctx context.Context, log *slog.Logger, cfg Config) (err error) {
	tel, err := telemetry.New(event.GroupWarehouse)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Close(context.WithoutCancel(ctx))) }()
	patience := await.New(log, cfg.Wait)
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, postgres.Options{ApplicationName: event.GroupWarehouse, Wait: patience})
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := kafka.Await(ctx, patience, cfg.Brokers); err != nil {
		return err
	}
	consumer, err := inbox.NewConsumer(pool, event.GroupWarehouse, routes(), inbox.Options{
		Kafka:      kafka.Options(cfg.Brokers, log),
		InstanceID: cfg.InstanceID,
		AfterBatch: cfg.AfterCommit,
		Log:        log,
		Meter:      tel.Meter,
	})
	if err != nil {
		return err
	}
	ops := httpserver.NewOps(tel.Metrics,
		httpserver.Check{Name: "postgres", Ready: pool.Ping},
		httpserver.Check{Name: "consumer", Ready: func(context.Context) error { return consumer.Ready() }})
	return ops.Around(ctx, log, cfg.OpsAddr, consumer.Run)
}
