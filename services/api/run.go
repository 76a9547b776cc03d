package api

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/ratelimit"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
)

// Config says how the api runs. Only DatabaseURL is required.
type Config struct {
	// Addr is where to serve HTTP. Default "127.0.0.1:8080".
	Addr string
	// Listener serves instead of Addr. Run closes it.
	Listener net.Listener
	// DatabaseURL leads to the database, as role orders. Required.
	DatabaseURL string
	// RedisURL leads to the Redis that holds the rate limits. Default none: each process keeps its own.
	RedisURL string
	// OpsAddr serves /healthz, /readyz and /metrics a second time, for a network that clients do not reach. Default none.
	OpsAddr string
	// Wait is how long a start may wait for Postgres. Default 60 s, negative: one try.
	Wait time.Duration
	// MaxConns is the most database connections. Default 16.
	MaxConns int
	// MaxInFlight is how many requests may hold or wait for a connection; more are told to come back. Default 256.
	MaxInFlight int
	// RatePerSecond and RateBurst limit the requests of each user key. Default 50 a second, 100 at once.
	RatePerSecond, RateBurst int
	// BodyTimeout is how long a client may take to send a body. Default 5 s.
	BodyTimeout time.Duration
	// WriteTimeout is how long a client may take to read 16 KiB of an answer. Default 20 s.
	WriteTimeout time.Duration
	// DrainDelay is how long requests are still accepted after readiness has turned red. Default 0.
	DrainDelay time.Duration
	// KeepKeys is how long an Idempotency-Key is remembered. Default 7 days.
	KeepKeys time.Duration
	// PaymentProvider names the provider whose webhooks are taken, one of [providers.Names]. Default the sandbox.
	PaymentProvider string
	// WebhookSecrets are what the provider may have signed its webhooks with: two while one replaces the other. Without any,
	// webhooks are not served.
	WebhookSecrets []string
	// Dev says that this is a development system: the documentation shows [DevKey], which everybody knows.
	Dev bool
	// AfterCommit is called after each commit that left a message in the outbox. It must not block. Optional.
	AfterCommit func()
}

func (c Config) withDefaults() Config {
	c.Addr = cmp.Or(c.Addr, "127.0.0.1:8080")
	c.MaxConns = cmp.Or(c.MaxConns, 16)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 256)
	c.BodyTimeout = cmp.Or(c.BodyTimeout, bodyTimeout)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 20*time.Second)
	c.KeepKeys = cmp.Or(c.KeepKeys, 7*24*time.Hour)
	if c.AfterCommit == nil {
		c.AfterCommit = func() {}
	}
	return c
}

func (c Config) check() error {
	var check config.Check
	check.URL("database-url", c.DatabaseURL, "postgres", "postgresql")
	if c.RedisURL != "" {
		check.URL("redis-url", c.RedisURL, "redis", "rediss")
	}
	if c.Listener == nil {
		check.Address("addr", c.Addr)
	}
	check.Between("max-conns", c.MaxConns, 1, 1000)
	check.Between("max-in-flight", c.MaxInFlight, 1, 100_000)
	check.Positive("body-timeout", c.BodyTimeout)
	check.Positive("write-timeout", c.WriteTimeout)
	check.Positive("keep-keys", c.KeepKeys)
	return check.Err()
}

// Run serves the api until ctx ends; requests that have begun are finished first. The database has to be migrated.
func Run(ctx context.Context, log *slog.Logger, cfg Config) (err error) {
	ln := cfg.Listener
	if ln != nil {
		defer func() { _ = ln.Close() }() // closed before, unless Run failed early
	}
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return err
	}
	tel, err := telemetry.New("api")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Close(context.WithoutCancel(ctx))) }()
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, postgres.Options{
		ApplicationName: "orderflow api", MaxConns: int32(cfg.MaxConns), Wait: await.New(log, cfg.Wait),
		// Below the time a request may take: who waits longer would wait in vain.
		StatementTimeout: placeTimeout, LockTimeout: resolveLockTimeout,
	})
	if err != nil {
		return err
	}
	defer pool.Close()
	limits, err := ratelimit.Open(cfg.RedisURL, ratelimit.Options{PerSecond: cfg.RatePerSecond, Burst: cfg.RateBurst, Log: log})
	if err != nil {
		return err
	}
	defer func() { _ = limits.Close() }() // it holds nothing that could be lost
	var webhooks payment.Webhooks
	if len(cfg.WebhookSecrets) > 0 {
		if webhooks, err = providers.Webhooks(cfg.PaymentProvider, cfg.WebhookSecrets...); err != nil {
			return err
		}
	}
	exampleKey := ""
	if cfg.Dev {
		exampleKey = DevKey
	}
	ops := httpserver.NewOps(tel.Metrics, httpserver.Check{Name: "postgres", Ready: pool.Ping})
	a, handler, err := build(ctx, parts{
		pool: pool, log: log, meter: tel.Meter, maxInFlight: cfg.MaxInFlight, bodyTimeout: cfg.BodyTimeout, writeTimeout: cfg.WriteTimeout,
		limits: limits, ops: ops, afterCommit: cfg.AfterCommit, webhooks: webhooks, exampleKey: exampleKey,
	})
	if err != nil {
		return err
	}
	if ln == nil {
		if ln, err = httpserver.Listen(ctx, cfg.Addr); err != nil {
			return err
		}
	}
	log.InfoContext(ctx, "serving", slog.String("addr", ln.Addr().String()))
	return ops.Around(ctx, log, cfg.OpsAddr, func(ctx context.Context) error {
		// What requests rely on ends after them.
		background, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		var loops errgroup.Group
		loops.Go(func() error { return a.watch.Run(background) })
		loops.Go(func() error {
			return (&cleaner{pool: pool, log: log, keep: cfg.KeepKeys, period: time.Hour}).Run(background)
		})
		err := httpserver.Run(ctx, log, ln, tel.Trace(handler), httpserver.Options{Ops: ops, DrainDelay: cfg.DrainDelay})
		stop()
		return errors.Join(err, loops.Wait())
	})
}
