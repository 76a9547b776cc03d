package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
	"github.com/orderflow-dev/orderflow/migrations"
	"github.com/orderflow-dev/orderflow/services/api"
)

// What the commands that run one service have in common.

func addServeFlags(cmd *cobra.Command, opsAddr string) {
	f := cmd.Flags()
	if opsAddr != "" {
		f.String("ops-addr", opsAddr, "where /healthz, /readyz and /metrics are served; empty: nowhere")
	}
	f.Bool("dev", false, "allow what only development may use: the embedded broker, the public passwords and keys")
	addLogFlags(cmd)
}

// addWaitFlag is for services that need others.
func addWaitFlag(cmd *cobra.Command) {
	cmd.Flags().Duration("wait", await.Default, "how long a start may wait for what is not there yet, Postgres, Kafka and topics together; 0: one try")
}

// newPatience returns the patience of a --wait, where zero means one try.
func newPatience(log *slog.Logger, limit time.Duration) *await.Patience {
	if limit == 0 {
		limit = -1
	}
	return await.New(log, limit)
}

func addLogFlags(cmd *cobra.Command) {
	cmd.Flags().String("log-level", "info", "what to log: debug, info, warn or error")
	cmd.Flags().String("log-format", "json", "how to log: json or text")
}

// newLogger returns the service's log, on stderr. The flags are checked before.
func newLogger(cmd *cobra.Command) (*slog.Logger, error) {
	log, err := telemetry.NewLog(cmd.ErrOrStderr(), telemetry.LogOptions{
		Level: stringFlag(cmd, "log-level"), Format: stringFlag(cmd, "log-format"),
	})
	if err != nil {
		return nil, usage("see `"+cmd.CommandPath()+" --help`", "%w", err)
	}
	return log.With("service", cmd.Name()), nil
}

// needs is what a service depends on, by flag.
type needs struct {
	databases map[string]string // flag → URL
	brokers   []string
	// refuseDevKey says that the first database must not hold the key that everybody knows.
	refuseDevKey bool
}

// serve checks the configuration, waits for what is needed to refuse what only development may use, and runs the service until
// a signal ends it. The service is told what is left of --wait.
func serve(cmd *cobra.Command, n needs, check *config.Check, run func(ctx context.Context, log *slog.Logger, wait time.Duration) error) error {
	limit, _ := cmd.Flags().GetDuration("wait")
	if limit < 0 {
		check.Add("--wait must not be negative, is %v", limit)
	}
	if f := cmd.Flags().Lookup("ops-addr"); f != nil && f.Value.String() != "" {
		check.Address("ops-addr", f.Value.String())
	}
	development, _ := cmd.Flags().GetBool("dev")
	for flag, database := range n.databases {
		check.URL(flag, database, "postgres", "postgresql")
		// Parsed as the connection does it: a password can stand in more than one place.
		if parsed, err := pgconn.ParseConfig(database); err == nil && !development && parsed.Password == migrations.DevRolePassword {
			check.Add("--%s has the public development password; give the role one of its own (`orderflow migrate --role-password`), or say --dev", flag)
		}
	}
	if n.brokers != nil {
		check.Addresses("kafka", n.brokers)
	}
	if err := invalid(cmd, check.Err()); err != nil {
		return err
	}
	log, err := newLogger(cmd)
	if err != nil {
		return err
	}
	log.Info("service starts", "version", buildVersion().Version, "pid", os.Getpid())
	err = start(cmd.Context(), log, n, development, limit, run)
	waited := cmd.Context().Err() != nil && errors.Is(err, context.Canceled) // a signal ended the wait for what it needs
	if err != nil && !waited {
		return err
	}
	log.Info("service stopped")
	return nil
}

func start(ctx context.Context, log *slog.Logger, n needs, development bool, limit time.Duration, run func(context.Context, *slog.Logger, time.Duration) error) error {
	patience := newPatience(log, limit)
	if !development && n.brokers != nil {
		if err := refuseEmbeddedBroker(ctx, patience, n.brokers); err != nil {
			return err
		}
	}
	if !development && n.refuseDevKey {
		if err := refuseDevKey(ctx, patience, n.databases["database-url"]); err != nil {
			return err
		}
	}
	return run(ctx, log, patience.Left())
}

// refuseEmbeddedBroker fails when the brokers are the one inside an `orderflow dev`: it is one node without copies.
func refuseEmbeddedBroker(ctx context.Context, patience *await.Patience, brokers []string) error {
	if err := kafka.AwaitBroker(ctx, patience, brokers); err != nil {
		return err
	}
	client, err := kgo.NewClient(kafka.Options(brokers, nil)...)
	if err != nil {
		return fmt.Errorf("set up the Kafka client: %w", err)
	}
	defer client.Close()
	meta, err := kadm.NewClient(client).BrokerMetadata(ctx)
	if err != nil {
		return fmt.Errorf("ask Kafka for its cluster id: %w", err)
	}
	if strings.HasPrefix(meta.Cluster, "kfake") {
		return usage("--dev says that this is a development system", "--kafka leads to the embedded broker of an orderflow dev, which keeps no copies")
	}
	return nil
}

// refuseDevKey fails when the api would accept the key that everybody knows.
func refuseDevKey(ctx context.Context, patience *await.Patience, databaseURL string) error {
	pool, err := postgres.Open(ctx, databaseURL, postgres.Options{ApplicationName: "orderflow api", MaxConns: 1, Wait: patience})
	if err != nil {
		return err
	}
	defer pool.Close()
	hash := sha256.Sum256([]byte(api.DevKey))
	var known bool
	if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM api_keys WHERE hash = $1 AND revoked_at IS NULL)`, hash[:]).Scan(&known); err != nil {
		return fmt.Errorf("look for the development key: %w", err)
	}
	if known {
		return usage("revoke it: orderflow keys revoke 'orderflow dev' --yes; or say --dev",
			"this database accepts the public development api key")
	}
	return nil
}
