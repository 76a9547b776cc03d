package email

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
)

// Config is what the email service works with.
type Config struct {
	// DatabaseURL connects as role email.
	DatabaseURL string
	// Brokers are Kafka's addresses, host:port.
	Brokers []string

	// From is the sender of every mail. Its domain is part of their Message-IDs. Default "Orderflow
	// <orders@orderflow.example>".
	From string
	// SMTPAddr is the mail provider, host:port. Default 127.0.0.1:1025, the sandbox.
	SMTPAddr string
	// SMTPUsername and SMTPPassword log in at the provider, which must offer TLS then. Optional.
	SMTPUsername, SMTPPassword string
	// LookupURL asks the provider which mails it has accepted. "{message_id}" in it is replaced; without that the
	// parameter message_id is added. The answer is a JSON array, or an object with the array "messages". The sandbox
	// answers at /v1/mail. Empty: an email in doubt is sent again under its Message-ID.
	LookupURL string
	// The fallback takes over while the provider does not answer. Optional.
	FallbackSMTPAddr                           string
	FallbackSMTPUsername, FallbackSMTPPassword string
	FallbackLookupURL                          string
	// RatePerSecond is the most mails a provider is given per second. Default 500.
	RatePerSecond float64
	// Connections is the number of SMTP connections, and of mails on their way at once. Default 4.
	Connections int
	// SendTimeout is how long a provider may take for one mail before its fate is in doubt. An email that a process left
	// behind is taken up by another about twice as long after. Default 10 s.
	SendTimeout time.Duration

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

func (c Config) withDefaults() Config {
	c.From = cmp.Or(c.From, DefaultFrom)
	c.SMTPAddr = cmp.Or(c.SMTPAddr, "127.0.0.1:1025")
	c.RatePerSecond = cmp.Or(c.RatePerSecond, 500)
	c.Connections = cmp.Or(c.Connections, 4)
	c.SendTimeout = cmp.Or(c.SendTimeout, 10*time.Second)
	if c.AfterCommit == nil {
		c.AfterCommit = func() {}
	}
	return c
}

// RebuildRoutes returns handlers that insert the emails which are missing, for package inbox's Options.Rebuild. Their rows may have
// been lost after they were sent, so they are inserted as in doubt: the sender asks every provider before it sends one.
// from is [Config.From].
func RebuildRoutes(from string) ([]inbox.Route, error) {
	domain, err := domainOf(from)
	if err != nil {
		return nil, err
	}
	return routes(queue{domain, stateSending}), nil
}

// DefaultFrom is the default of [Config.From].
const DefaultFrom = "Orderflow <orders@orderflow.example>"

// Run queues and sends emails until ctx ends. It waits for what it needs, and returns an error when it cannot start: no
// Postgres, no Kafka or missing topics within Config.Wait, or at once topics with another number of partitions. Once it
// runs, outages of Postgres, Kafka and the mail provider are waited out.
func Run(ctx context.Context, log *slog.Logger, cfg Config) (err error) {
	cfg = cfg.withDefaults()
	tel, err := telemetry.New(event.GroupEmail)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Close(context.WithoutCancel(ctx))) }()
	patience := await.New(log, cfg.Wait)
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, postgres.Options{
		ApplicationName: event.GroupEmail,
		MaxConns:        int32(8 + cfg.Connections), // the consumer's workers and drainer; the sender's
		Wait:            patience,
	})
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := kafka.Await(ctx, patience, cfg.Brokers); err != nil {
		return err
	}
	sender, err := newSender(pool, log, tel.Meter, cfg, timing{})
	if err != nil {
		return err
	}
	consumer, err := newConsumer(pool, log, tel, cfg, sender.kickNow)
	if err != nil {
		return err
	}
	ops := httpserver.NewOps(tel.Metrics,
		httpserver.Check{Name: "postgres", Ready: pool.Ping},
		httpserver.Check{Name: "consumer", Ready: func(context.Context) error { return consumer.Ready() }})
	return ops.Around(ctx, log, cfg.OpsAddr, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return consumer.Run(ctx) })
		group.Go(func() error { return sender.Run(ctx) })
		return group.Wait()
	})
}

func newConsumer(pool *pgxpool.Pool, log *slog.Logger, tel *telemetry.Telemetry, cfg Config, queued func()) (*inbox.Consumer, error) {
	domain, err := domainOf(cfg.From)
	if err != nil {
		return nil, err
	}
	return inbox.NewConsumer(pool, event.GroupEmail, routes(queue{domain, stateQueued}), inbox.Options{
		Kafka:      kafka.Options(cfg.Brokers, log),
		InstanceID: cfg.InstanceID,
		AfterBatch: func() { queued(); cfg.AfterCommit() },
		Log:        log,
		Meter:      tel.Meter,
	})
}

func domainOf(from string) (string, error) {
	address, err := mail.ParseAddress(from)
	if err != nil {
		return "", fmt.Errorf("the sender %q is not an address: %w", from, err)
	}
	_, domain, _ := strings.Cut(address.Address, "@")
	return domain, nil
}
