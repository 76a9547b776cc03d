package dev

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/migrations"
	"github.com/orderflow-dev/orderflow/services/api"
	"github.com/orderflow-dev/orderflow/services/email"
	"github.com/orderflow-dev/orderflow/services/order"
	"github.com/orderflow-dev/orderflow/services/relay"
	"github.com/orderflow-dev/orderflow/services/sandbox"
	"github.com/orderflow-dev/orderflow/services/warehouse"
)

// start starts every part: what the services need side by side, then the services side by side.
func (s *system) start(ctx context.Context) error {
	// Before the sandbox, which reports payments to it.
	web, note, err := listen(ctx, cmp.Or(s.opts.Ports.API, defaultPorts.API), s.opts.Ports.API != 0)
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	s.add("the api's port", layerServer, func(context.Context) error { _ = web.Close(); return nil }) // for when the api never runs
	s.ready.API = "http://" + web.Addr().String()
	secret, err := webhookSecret(s.opts.DataDir)
	if err != nil {
		return err
	}
	var brokers []string
	var owner, redisURL string
	parts, partsCtx := errgroup.WithContext(ctx)
	parts.Go(func() (err error) {
		if owner, err = s.startPostgres(partsCtx); err != nil {
			return err
		}
		return s.prepareDatabase(partsCtx, owner)
	})
	parts.Go(func() (err error) { brokers, err = s.startKafka(partsCtx); return err })
	parts.Go(func() (err error) { redisURL, err = s.startRedis(partsCtx); return err })
	parts.Go(func() error { return s.startSandbox(partsCtx, secret) })
	if err := parts.Wait(); err != nil {
		return err
	}
	s.ready.Postgres, s.ready.Redis, s.ready.Kafka, s.ready.APIKey = owner, redisURL, strings.Join(brokers, ","), api.DevKey
	if err := s.refillKafka(ctx, owner); err != nil {
		return err
	}
	if err := s.startServices(ctx, owner, brokers, api.Config{
		Listener: web, RedisURL: redisURL, WebhookSecrets: []string{secret}, Dev: true,
	}, note); err != nil {
		return err
	}
	return s.seedOrders(ctx)
}

// webhookSecret returns what the sandbox signs its webhooks with. The first start makes it.
func webhookSecret(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "webhook-secret")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw = []byte(rand.Text())
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("keep the webhook secret: %w", err)
	}
	return string(raw), nil
}

func (s *system) startSandbox(ctx context.Context, webhookSecret string) error {
	began := time.Now()
	web, note, err := listen(ctx, cmp.Or(s.opts.Ports.Sandbox, defaultPorts.Sandbox), s.opts.Ports.Sandbox != 0)
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	smtp, smtpNote, err := listen(ctx, cmp.Or(s.opts.Ports.SMTP, defaultPorts.SMTP), s.opts.Ports.SMTP != 0)
	if err != nil {
		return errors.Join(fmt.Errorf("sandbox: %w", err), web.Close())
	}
	s.ready.Sandbox, s.ready.SMTP = "http://"+web.Addr().String(), smtp.Addr().String()
	s.run(ctx, "sandbox", layerOutside, func(ctx context.Context) error {
		return sandbox.Run(ctx, s.logOf("sandbox"), sandbox.Config{
			Listener: web, SMTPListener: smtp, DataDir: filepath.Join(s.opts.DataDir, "sandbox"),
			WebhookURL: s.ready.API + "/v1/webhooks/payments", WebhookSecret: webhookSecret,
		})
	})
	if err := s.await(ctx, "sandbox", s.ready.Sandbox+"/readyz"); err != nil {
		return err
	}
	s.report.part("sandbox", "payments on "+web.Addr().String()+", mail on "+smtp.Addr().String(), join(note, smtpNote), time.Since(began))
	return nil
}

// kicks are how a service tells the relay of its schema that it has committed messages.
type kicks map[string]chan struct{}

func newKicks() kicks {
	k := kicks{}
	for _, schema := range schemas {
		k[schema] = make(chan struct{}, 1) // one is enough: a kick that waits covers all that was committed before
	}
	return k
}

func (k kicks) of(schema string) func() {
	return func() {
		select {
		case k[schema] <- struct{}{}:
		default:
		}
	}
}

func (s *system) startServices(ctx context.Context, owner string, brokers []string, web api.Config, note string) error {
	urls := map[string]string{}
	for _, schema := range schemas {
		for _, role := range []string{schema, schema + "_relay"} {
			url, err := migrations.RoleURL(owner, role, migrations.DevRolePassword)
			if err != nil {
				return err
			}
			urls[role] = url
		}
	}
	kick := newKicks()
	var sources []relay.Source
	for _, schema := range schemas {
		sources = append(sources, relay.Source{Schema: schema, DatabaseURL: urls[schema+"_relay"], Kick: kick[schema]})
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return s.service(ctx, "relay", layerRelay, "publishes the outboxes", func(ctx context.Context, ops string) error {
			return relay.Run(ctx, s.logOf("relay"), relay.Config{Sources: sources, Brokers: brokers, OpsAddr: ops})
		})
	})
	group.Go(func() error {
		return s.service(ctx, "order", layerConsumer, "reads orders, runs their sagas", func(ctx context.Context, ops string) error {
			return order.Run(ctx, s.logOf("order"), order.Config{
				DatabaseURL: urls["orders"], Brokers: brokers, Payment: providers.Config{URL: s.ready.Sandbox}, OpsAddr: ops, AfterCommit: kick.of("orders"),
			})
		})
	})
	group.Go(func() error {
		return s.service(ctx, "email", layerConsumer, "tells the users", func(ctx context.Context, ops string) error {
			return email.Run(ctx, s.logOf("email"), email.Config{
				DatabaseURL: urls["email"], Brokers: brokers, SMTPAddr: s.ready.SMTP, LookupURL: s.ready.Sandbox + "/v1/mail", OpsAddr: ops, AfterCommit: kick.of("email"),
			})
		})
	})
	group.Go(func() error {
		return s.service(ctx, "warehouse", layerConsumer, "ships what is paid", func(ctx context.Context, ops string) error {
			return warehouse.Run(ctx, s.logOf("warehouse"), warehouse.Config{
				DatabaseURL: urls["warehouse"], Brokers: brokers, OpsAddr: ops, AfterCommit: kick.of("warehouse"),
			})
		})
	})
	web.DatabaseURL, web.AfterCommit = urls["orders"], kick.of("orders")
	group.Go(func() error { return s.startAPI(ctx, web, note) })
	return group.Wait()
}

func (s *system) startAPI(ctx context.Context, cfg api.Config, note string) error {
	began := time.Now()
	s.run(ctx, "api", layerAPI, func(ctx context.Context) error { return api.Run(ctx, s.logOf("api"), cfg) })
	if err := s.await(ctx, "api", s.ready.API+"/readyz"); err != nil {
		return err
	}
	s.report.part("api", "takes orders on "+cfg.Listener.Addr().String(), note, time.Since(began))
	return nil
}

// service runs a service and returns once it is ready.
func (s *system) service(ctx context.Context, name string, layer int, detail string, run func(ctx context.Context, ops string) error) error {
	began := time.Now()
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	ops := loopback(port)
	s.run(ctx, name, layer, func(ctx context.Context) error { return run(ctx, ops) })
	if err := s.await(ctx, name, "http://"+ops+"/readyz"); err != nil {
		return err
	}
	s.mu.Lock()
	s.ready.Ops[name] = "http://" + ops
	s.mu.Unlock()
	s.report.part(name, detail, "", time.Since(began))
	return nil
}
