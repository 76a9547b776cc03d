package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/services/api"
	"github.com/orderflow-dev/orderflow/services/email"
	"github.com/orderflow-dev/orderflow/services/order"
	"github.com/orderflow-dev/orderflow/services/relay"
	"github.com/orderflow-dev/orderflow/services/sandbox"
	"github.com/orderflow-dev/orderflow/services/warehouse"
)

func newServices() []*cobra.Command {
	return []*cobra.Command{newAPI(), newRelay(), newOrder(), newEmail(), newWarehouse(), newSandbox()}
}

// addConsumerFlags adds what every service that consumes needs.
func addConsumerFlags(cmd *cobra.Command, role string) {
	cmd.Flags().String("database-url", "", "Postgres URL of role "+role+" (required)")
	cmd.Flags().StringSlice("kafka", nil, "brokers as host:port (required)")
	cmd.Flags().String("instance-id", "", "a name of this process that outlives its restarts, unlike any other's in its group: one that is back within 45s has the partitions it had; empty: a member that ends leaves at once")
	addWaitFlag(cmd)
}

func consumerNeeds(cmd *cobra.Command) (needs, error) {
	brokers, err := cmd.Flags().GetStringSlice("kafka")
	if err != nil {
		return needs{}, err
	}
	if brokers == nil {
		brokers = []string{}
	}
	return needs{databases: map[string]string{"database-url": stringFlag(cmd, "database-url")}, brokers: brokers}, nil
}

func newAPI() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "api",
		Short: "Accept orders over HTTP",
		Long: `Accepts orders over HTTP. It needs Postgres, and neither Kafka nor Redis to accept an order: without Redis the rate limits
are each process's own. /docs shows the reference; /healthz, /readyz and /metrics are on the same address.`,
		Example: "  orderflow api --database-url postgres://orders@db/orderflow --redis-url redis://cache:6379/0",
		Args:    cobra.NoArgs,
		RunE:    runAPI,
	}
	f := cmd.Flags()
	f.String("addr", "127.0.0.1:8080", "where to listen")
	f.String("database-url", "", "Postgres URL of role orders (required)")
	f.String("redis-url", "", "Redis to share rate limits through, redis://host:port/0; empty: none")
	f.String("ops-addr", "", "where /healthz, /readyz and /metrics are served a second time; empty: nowhere")
	f.Int("max-conns", 16, "most database connections")
	f.Int("max-in-flight", 256, "requests that may hold or wait for a connection; more are told to come back")
	f.Int("rate-per-second", 50, "requests per second of each user key")
	f.Int("rate-burst", 100, "requests at once of each user key")
	f.Duration("body-timeout", 5*time.Second, "how long a client may take to send a body")
	addWebhookFlags(cmd)
	f.Duration("drain-delay", 0, "how long requests are still accepted after readiness has turned red; behind a load balancer, a little more than the period of its check")
	f.Duration("keep-keys", 7*24*time.Hour, "how long an Idempotency-Key is remembered")
	addWaitFlag(cmd)
	addServeFlags(cmd, "")
	return cmd
}

func addWebhookFlags(cmd *cobra.Command) {
	cmd.Flags().String("payment-provider", providers.Sandbox, "whose webhooks are taken at /v1/webhooks/payments: "+strings.Join(providers.Names(), " or "))
	cmd.Flags().String("webhook-secret", "", "what the payment provider signs its webhooks with; two, with a comma between, while one replaces the other; empty: webhooks are not served")
}

// devWebhookSecret is the one of deploy/compose/dev-only. It is public.
const devWebhookSecret = "orderflow-dev-only-webhook-secret" //nolint:gosec // public on purpose

// minSecret is what makes a guess hopeless for a random secret.
const minSecret = 20

func webhookSecrets(cmd *cobra.Command, development bool, check *config.Check) []string {
	var secrets []string
	for secret := range strings.SplitSeq(stringFlag(cmd, "webhook-secret"), ",") {
		switch secret = strings.TrimSpace(secret); {
		case secret == "":
			continue
		case len(secret) < minSecret:
			check.Add("--webhook-secret has one of %d characters, fewer than %d", len(secret), minSecret)
		case secret == devWebhookSecret && !development:
			check.Add("--webhook-secret is the public development secret; take one of your own, or say --dev")
		}
		secrets = append(secrets, secret)
	}
	return secrets
}

// maxRate is beyond what one process could answer.
const maxRate = 1_000_000

func runAPI(cmd *cobra.Command, _ []string) error {
	f := cmd.Flags()
	number := func(name string) int { n, _ := f.GetInt(name); return n }
	length := func(name string) time.Duration { d, _ := f.GetDuration(name); return d }
	cfg := api.Config{
		Addr: stringFlag(cmd, "addr"), DatabaseURL: stringFlag(cmd, "database-url"), RedisURL: stringFlag(cmd, "redis-url"),
		OpsAddr: stringFlag(cmd, "ops-addr"), MaxConns: number("max-conns"), MaxInFlight: number("max-in-flight"),
		RatePerSecond: number("rate-per-second"), RateBurst: number("rate-burst"),
		BodyTimeout: length("body-timeout"), DrainDelay: length("drain-delay"), KeepKeys: length("keep-keys"),
	}
	var check config.Check
	check.Address("addr", cfg.Addr)
	check.Between("rate-per-second", cfg.RatePerSecond, 1, maxRate)
	check.Between("rate-burst", cfg.RateBurst, 1, maxRate)
	if cfg.RedisURL != "" {
		check.URL("redis-url", cfg.RedisURL, "redis", "rediss")
	}
	cfg.Dev, _ = f.GetBool("dev")
	cfg.PaymentProvider = stringFlag(cmd, "payment-provider")
	check.OneOf("payment-provider", cfg.PaymentProvider, providers.Names()...)
	cfg.WebhookSecrets = webhookSecrets(cmd, cfg.Dev, &check)
	n := needs{databases: map[string]string{"database-url": cfg.DatabaseURL}, refuseDevKey: true}
	return serve(cmd, n, &check, func(ctx context.Context, log *slog.Logger, wait time.Duration) error {
		cfg.Wait = wait
		return api.Run(ctx, log, cfg)
	})
}

func newRelay() *cobra.Command {
	flags := map[string]string{"orders": "orders-database-url", "email": "email-database-url", "warehouse": "warehouse-database-url"}
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Publish the outboxes to Kafka",
		Long: `Publishes what the services have written to their outboxes. Give it the Postgres URL of the relay role of each schema to
publish from. Run two or more as hot standbys of each other.`,
		Example: `  orderflow relay --kafka broker-1:9092 --orders-database-url postgres://orders_relay@db/orderflow \
    --email-database-url postgres://email_relay@db/orderflow \
    --warehouse-database-url postgres://warehouse_relay@db/orderflow`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := relayNeeds(cmd)
			if err != nil {
				return err
			}
			cfg := relay.Config{Brokers: n.brokers, OpsAddr: stringFlag(cmd, "ops-addr")}
			var check config.Check
			for _, schema := range []string{"orders", "email", "warehouse"} {
				if database := stringFlag(cmd, flags[schema]); database != "" {
					n.databases[flags[schema]] = database
					cfg.Sources = append(cfg.Sources, relay.Source{Schema: schema, DatabaseURL: database})
				}
			}
			if len(cfg.Sources) == 0 {
				check.Add("one of --orders-database-url, --email-database-url and --warehouse-database-url is required")
			}
			return serve(cmd, n, &check, func(ctx context.Context, log *slog.Logger, wait time.Duration) error {
				cfg.Wait = wait
				return relay.Run(ctx, log, cfg)
			})
		},
	}
	for _, schema := range []string{"orders", "email", "warehouse"} {
		cmd.Flags().String(flags[schema], "", "Postgres URL of role "+schema+"_relay; empty: not published from")
	}
	cmd.Flags().StringSlice("kafka", nil, "brokers as host:port (required)")
	addWaitFlag(cmd)
	addServeFlags(cmd, "127.0.0.1:8081")
	return cmd
}

func relayNeeds(cmd *cobra.Command) (needs, error) {
	brokers, err := cmd.Flags().GetStringSlice("kafka")
	if brokers == nil {
		brokers = []string{}
	}
	return needs{databases: map[string]string{}, brokers: brokers}, err
}

func newOrder() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "order",
		Short:   "Decide what becomes of orders (consumer group order)",
		Example: "  orderflow order --database-url postgres://orders@db/orderflow --kafka broker-1:9092 --payment-provider stripe",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := consumerNeeds(cmd)
			if err != nil {
				return err
			}
			cfg := order.Config{
				DatabaseURL: n.databases["database-url"], Brokers: n.brokers, OpsAddr: stringFlag(cmd, "ops-addr"),
				InstanceID: stringFlag(cmd, "instance-id"),
			}
			var check config.Check
			cfg.Payment = paymentProvider(cmd, &check)
			return serve(cmd, n, &check, func(ctx context.Context, log *slog.Logger, wait time.Duration) error {
				cfg.Wait = wait
				return order.Run(ctx, log, cfg)
			})
		},
	}
	addConsumerFlags(cmd, "orders")
	addProviderFlags(cmd, "http://127.0.0.1:8090")
	addServeFlags(cmd, "127.0.0.1:8082")
	return cmd
}

// addProviderFlags adds what paymentProvider reads. sandbox says where the sandbox is looked for.
func addProviderFlags(cmd *cobra.Command, sandbox string) {
	f := cmd.Flags()
	f.String("payment-provider", providers.Sandbox, "payment provider: "+strings.Join(providers.Names(), " or "))
	f.String("payment-url", "", "base URL of the payment provider (default: "+sandbox+", or Stripe's own)")
	f.String("stripe-key", "", "secret or restricted key of the Stripe account; better in the environment or a file than here")
}

func paymentProvider(cmd *cobra.Command, check *config.Check) providers.Config {
	cfg := providers.Config{
		Name: stringFlag(cmd, "payment-provider"), URL: stringFlag(cmd, "payment-url"), StripeKey: stringFlag(cmd, "stripe-key"),
	}
	check.OneOf("payment-provider", cfg.Name, providers.Names()...)
	if cfg.URL != "" {
		check.URL("payment-url", cfg.URL, "http", "https")
	}
	if cfg.Name == providers.Stripe {
		check.Required("stripe-key", cfg.StripeKey)
	}
	return cfg
}

func newEmail() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "email",
		Short:   "Tell users by mail (consumer group email)",
		Example: "  orderflow email --database-url postgres://email@db/orderflow --kafka broker-1:9092 --smtp-addr mail.example:587",
		Args:    cobra.NoArgs,
		RunE:    runEmail,
	}
	addConsumerFlags(cmd, "email")
	f := cmd.Flags()
	f.String("from", email.DefaultFrom, "sender of the mails; its domain is part of their Message-IDs")
	f.String("smtp-addr", "127.0.0.1:1025", "mail provider as host:port")
	f.String("smtp-username", "", "user at the provider, which must offer TLS then")
	f.String("smtp-password", "", "password at the provider")
	f.String("lookup-url", "", "URL that tells which mails the provider has accepted, {message_id} in it is replaced; empty: a mail in doubt is sent again under its Message-ID")
	f.String("fallback-smtp-addr", "", "provider that takes over while the first does not answer; empty: none")
	f.String("fallback-smtp-username", "", "user at the fallback")
	f.String("fallback-smtp-password", "", "password at the fallback")
	f.String("fallback-lookup-url", "", "as --lookup-url, at the fallback")
	f.Float64("rate-per-second", 500, "most mails per second that a provider is given")
	f.Int("connections", 4, "SMTP connections, and mails on their way at once")
	f.Duration("send-timeout", 10*time.Second, "how long a provider may take for one mail before its fate is in doubt")
	addServeFlags(cmd, "127.0.0.1:8083")
	return cmd
}

func runEmail(cmd *cobra.Command, _ []string) error {
	n, err := consumerNeeds(cmd)
	if err != nil {
		return err
	}
	f := cmd.Flags()
	cfg := email.Config{
		DatabaseURL: n.databases["database-url"], Brokers: n.brokers, From: stringFlag(cmd, "from"), OpsAddr: stringFlag(cmd, "ops-addr"),
		InstanceID: stringFlag(cmd, "instance-id"),
		SMTPAddr:   stringFlag(cmd, "smtp-addr"), SMTPUsername: stringFlag(cmd, "smtp-username"), SMTPPassword: stringFlag(cmd, "smtp-password"),
		LookupURL: stringFlag(cmd, "lookup-url"), FallbackSMTPAddr: stringFlag(cmd, "fallback-smtp-addr"),
		FallbackSMTPUsername: stringFlag(cmd, "fallback-smtp-username"), FallbackSMTPPassword: stringFlag(cmd, "fallback-smtp-password"),
		FallbackLookupURL: stringFlag(cmd, "fallback-lookup-url"),
	}
	cfg.RatePerSecond, _ = f.GetFloat64("rate-per-second")
	cfg.Connections, _ = f.GetInt("connections")
	cfg.SendTimeout, _ = f.GetDuration("send-timeout")
	var check config.Check
	check.Address("smtp-addr", cfg.SMTPAddr)
	check.Required("from", cfg.From)
	if cfg.FallbackSMTPAddr != "" {
		check.Address("fallback-smtp-addr", cfg.FallbackSMTPAddr)
	}
	check.Between("connections", cfg.Connections, 1, 1000)
	check.Positive("send-timeout", cfg.SendTimeout)
	if cfg.RatePerSecond <= 0 {
		check.Add("--rate-per-second must be positive, is %g", cfg.RatePerSecond)
	}
	return serve(cmd, n, &check, func(ctx context.Context, log *slog.Logger, wait time.Duration) error {
		cfg.Wait = wait
		return email.Run(ctx, log, cfg)
	})
}

func newWarehouse() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "warehouse",
		Short:   "Ship what is paid (consumer group warehouse)",
		Example: "  orderflow warehouse --database-url postgres://warehouse@db/orderflow --kafka broker-1:9092",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := consumerNeeds(cmd)
			if err != nil {
				return err
			}
			cfg := warehouse.Config{
				DatabaseURL: n.databases["database-url"], Brokers: n.brokers, OpsAddr: stringFlag(cmd, "ops-addr"), InstanceID: stringFlag(cmd, "instance-id"),
			}
			return serve(cmd, n, &config.Check{}, func(ctx context.Context, log *slog.Logger, wait time.Duration) error {
				cfg.Wait = wait
				return warehouse.Run(ctx, log, cfg)
			})
		},
	}
	addConsumerFlags(cmd, "warehouse")
	addServeFlags(cmd, "127.0.0.1:8084")
	return cmd
}

func newSandbox() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Play the payment and mail providers, for development and tests",
		Long: `Plays the outside world: a payment provider over HTTP and a mail catcher over SMTP, with a journal of what really happened.

The payment method of an order chooses how the provider behaves:
` + paymentMethods,
		Example: "  orderflow sandbox --sandbox-dir /var/lib/orderflow/sandbox\n  curl http://127.0.0.1:8090/v1/journal",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := sandbox.Config{Addr: stringFlag(cmd, "addr"), SMTPAddr: stringFlag(cmd, "smtp-addr"), DataDir: stringFlag(cmd, "sandbox-dir"),
				WebhookURL: stringFlag(cmd, "webhook-url"), WebhookSecret: stringFlag(cmd, "webhook-secret")}
			var check config.Check
			check.Address("addr", cfg.Addr)
			check.Address("smtp-addr", cfg.SMTPAddr)
			check.Required("sandbox-dir", cfg.DataDir)
			if cfg.WebhookURL != "" {
				check.URL("webhook-url", cfg.WebhookURL, "http", "https")
				check.Required("webhook-secret", cfg.WebhookSecret)
			}
			return serve(cmd, needs{}, &check, func(ctx context.Context, log *slog.Logger, _ time.Duration) error { return sandbox.Run(ctx, log, cfg) })
		},
	}
	cmd.Flags().String("addr", "127.0.0.1:8090", "where to serve payments, mail and journal over HTTP")
	cmd.Flags().String("smtp-addr", "127.0.0.1:1025", "where to take mail over SMTP")
	cmd.Flags().String("webhook-url", "", "where to report payments, such as http://127.0.0.1:8080/v1/webhooks/payments; empty: nowhere")
	cmd.Flags().String("webhook-secret", "", "what to sign the reports with")
	cmd.Flags().String("sandbox-dir", "", "folder for the journal (required)")
	addServeFlags(cmd, "")
	return cmd
}
