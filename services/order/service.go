package order

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
	"github.com/orderflow-dev/orderflow/saga"
)

// Config says what the service works with.
type Config struct {
	// DatabaseURL connects as role orders.
	DatabaseURL string
	// Brokers are Kafka's addresses, host:port.
	Brokers []string
	// Payment says which payment provider, and how it is reached. Default the sandbox at http://127.0.0.1:8090.
	Payment providers.Config
	// InstanceID makes the process a static member of its consumer group; see inbox.Options. Empty: a dynamic one.
	InstanceID string
	// OpsAddr is where /healthz, /readyz and /metrics are served. Empty: nowhere.
	OpsAddr string
	// Wait is how long a start may wait for Postgres, Kafka and the topics together. Default 60 s, negative: one try.
	Wait time.Duration
	// AfterCommit is called after the service has committed messages, to have them published at once. Optional; it must not
	// block.
	AfterCommit func()
}

// Routes returns the handlers of the service, for who runs them without the rest of it.
func Routes() []inbox.Route { return routes() }

// Run runs the order service until ctx ends. It waits for what it needs, and returns an error when it cannot start: no Postgres,
// no Kafka or missing topics within Config.Wait, or at once topics with another number of partitions. Once it runs, outages
// are waited out.
func Run(ctx context.Context, log *slog.Logger, cfg Config) (err error) {
	provider, err := providers.Open(cfg.Payment)
	if err != nil {
		return err
	}
	defer provider.Close()
	patience := await.New(log, cfg.Wait)
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, postgres.Options{
		ApplicationName: event.GroupOrder,
		MaxConns:        16, // the saga's and the inbox's workers, and calls that save their progress
		Wait:            patience,
	})
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := kafka.Await(ctx, patience, cfg.Brokers); err != nil {
		return err
	}
	tel, err := telemetry.New(event.GroupOrder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Close(context.WithoutCancel(ctx))) }()
	p := &payments{provider, pool}
	engine, err := saga.NewEngine(pool, []*saga.Definition{definition(p), refundDefinition(p)}, saga.EngineOptions{
		Log:   log,
		Meter: tel.Meter,
	})
	if err != nil {
		return err
	}
	consumer, err := inbox.NewConsumer(pool, event.GroupOrder, routes(), inbox.Options{
		Kafka:      kafka.Options(cfg.Brokers, log),
		InstanceID: cfg.InstanceID,
		AfterBatch: afterBatch(engine, cfg.AfterCommit),
		Log:        log,
		Meter:      tel.Meter,
	})
	if err != nil {
		return err
	}
	ops := httpserver.NewOps(tel.Metrics,
		httpserver.Check{Name: "postgres", Ready: pool.Ping},
		httpserver.Check{Name: "consumer", Ready: func(context.Context) error { return consumer.Ready() }})
	return ops.Around(ctx, log, cfg.OpsAddr, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return engine.Run(ctx) })
		group.Go(func() error { return consumer.Run(ctx) })
		return group.Wait()
	})
}

// afterBatch kicks what a batch of messages made work for: sagas to run, and copies of dead letters to publish.
func afterBatch(engine *saga.Engine, published func()) func() {
	return func() {
		engine.Kick()
		if published != nil {
			published()
		}
	}
}
