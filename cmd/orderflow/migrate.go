package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/migrations"
	"github.com/orderflow-dev/orderflow/services/api"
)

func newMigrate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring Postgres and Kafka to what this version needs",
		Long: `Creates roles, schemas and tables in Postgres and the topics in Kafka. It can be run again at any time, also by several
processes at once, and does nothing when there is nothing to do. It refuses a database that a newer version has migrated,
and topics whose partition count has changed.

The Postgres URL is the owner's, who may create roles and schemas, over a direct connection (no pooler in transaction
mode). The services log in as the roles orders, email and warehouse, the relay as orders_relay, email_relay and
warehouse_relay.`,
		Example: `  orderflow migrate --database-url postgres://owner@db/orderflow --role-password "$PW" --kafka broker-1:9092
  orderflow migrate status --database-url postgres://owner@db/orderflow --kafka broker-1:9092`,
		Args: cobra.NoArgs,
		RunE: migrate,
	}
	addMigrateFlags(cmd)
	addLogFlags(cmd)
	cmd.Flags().String("role-password", "", "password for the services' roles; empty keeps those that exist")
	cmd.Flags().StringSlice("schemas", nil, "schemas to migrate, for services with databases of their own (default: all)")
	cmd.Flags().Int("replication", 0, "copies of each topic (default: 3, or the number of brokers when there are fewer)")
	cmd.Flags().Duration("wait", 30*time.Second, "how long to wait for brokers that are not there yet")
	cmd.Flags().Bool("dev", false, "give the roles the public development password")
	cmd.Flags().Bool("sample", false, "with --dev: add the sample catalog and the public development api key, so that an order can be placed")
	cmd.Flags().Int("compose-format", 0, "format of the docker-compose.yml that runs this")
	_ = cmd.Flags().MarkHidden("compose-format")
	cmd.AddCommand(newMigrateStatus())
	return cmd
}

// composeFormat counts the changes to what docker-compose.yml must say for this program: one more for each variable, volume,
// port or command that an older file would miss.
const composeFormat = 2

// checkComposeFormat refuses to run from the compose file of another release, before anything is changed. Zero: not from one.
func checkComposeFormat(format int) error {
	switch {
	case format == 0 || format == composeFormat:
		return nil
	case format < composeFormat:
		return fail(exitConflict, "take docker-compose.yml from the release of the image (`orderflow version`), then run it again",
			"docker-compose.yml is of an older release than the image: its format is %d, this version needs %d", format, composeFormat)
	default:
		return fail(exitConflict, "build or pull the image of the release that docker-compose.yml is from, then run it again",
			"docker-compose.yml is of a newer release than the image: its format is %d, this version knows %d", format, composeFormat)
	}
}

func addMigrateFlags(cmd *cobra.Command) {
	cmd.Flags().String("database-url", "", "the owner's Postgres URL; empty leaves Postgres alone")
	cmd.Flags().StringSlice("kafka", nil, "brokers as host:port; empty leaves Kafka alone")
}

func migrateTargets(cmd *cobra.Command) (database string, brokers []string, err error) {
	database = stringFlag(cmd, "database-url")
	if brokers, err = cmd.Flags().GetStringSlice("kafka"); err != nil {
		return "", nil, err
	}
	var check config.Check
	if database == "" && len(brokers) == 0 {
		check.Add("--database-url, --kafka or both are required")
	}
	if database != "" {
		check.URL("database-url", database, "postgres", "postgresql")
	}
	if len(brokers) > 0 {
		check.Addresses("kafka", brokers)
	}
	return database, brokers, invalid(cmd, check.Err())
}

func migrate(cmd *cobra.Command, _ []string) error {
	format, _ := cmd.Flags().GetInt("compose-format")
	if err := checkComposeFormat(format); err != nil {
		return err
	}
	database, brokers, err := migrateTargets(cmd)
	if err != nil {
		return err
	}
	log, err := newLogger(cmd)
	if err != nil {
		return err
	}
	if database != "" {
		if err := migratePostgres(cmd, database, log); err != nil {
			return err
		}
	}
	if len(brokers) > 0 {
		return migrateKafka(cmd, brokers, log)
	}
	return nil
}

func migratePostgres(cmd *cobra.Command, database string, log *slog.Logger) error {
	ctx, f, began := cmd.Context(), cmd.Flags(), time.Now()
	password := stringFlag(cmd, "role-password")
	development, _ := f.GetBool("dev")
	sample, _ := f.GetBool("sample")
	switch {
	case sample && !development:
		return usage("add --dev on a development system; elsewhere see `orderflow products import` and `orderflow keys create`",
			"--sample makes an api key known that everybody knows")
	case development && password == "":
		password = migrations.DevRolePassword
	case password == migrations.DevRolePassword && !development:
		return usage("--dev says that this is a development system", "--role-password is the public development password")
	}
	chosen, _ := f.GetStringSlice("schemas")
	if err := migrations.Up(ctx, database, migrations.Options{RolePassword: password, Schemas: chosen, Log: log}); err != nil {
		return err
	}
	if sample {
		if err := addSample(ctx, database); err != nil {
			return err
		}
	}
	cmd.PrintErrf("postgres is up to date (%.2f s)\n", time.Since(began).Seconds())
	return nil
}

// addSample adds what an order needs: products, and a key to order with.
func addSample(ctx context.Context, database string) error {
	pool, err := openSchema(ctx, database, "orders")
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := order.SeedCatalog(ctx, pool); err != nil {
		return ownerError(err)
	}
	return ownerError(api.AddKey(ctx, pool, api.Key{Secret: api.DevKey, Role: api.RoleService, Name: "orderflow dev"}))
}

func migrateKafka(cmd *cobra.Command, brokers []string, log *slog.Logger) error {
	f, began := cmd.Flags(), time.Now()
	replication, _ := f.GetInt("replication")
	patience, _ := f.GetDuration("wait")
	if err := kafka.EnsureTopics(cmd.Context(), brokers, kafka.TopicOptions{Replication: replication, Wait: newPatience(log, patience)}); err != nil {
		return err
	}
	cmd.PrintErrf("kafka has all %d topics with %d partitions (%.2f s)\n", len(event.Topics()), event.Partitions, time.Since(began).Seconds())
	return nil
}

type statusDoc struct {
	Schemas []migrations.SchemaStatus `json:"schemas,omitempty"`
	Topics  string                    `json:"topics,omitempty"` // "ok", or what is wrong
}

func newMigrateStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what migrate would do",
		Long: `Shows where each schema stands and whether the topics are as they must be. It changes nothing. The exit code is 7 when
there is something to do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			database, brokers, err := migrateTargets(cmd)
			if err != nil {
				return err
			}
			return migrateStatus(cmd.Context(), out, database, brokers)
		},
	}
	addMigrateFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

func migrateStatus(ctx context.Context, out *output, database string, brokers []string) error {
	var doc statusDoc
	var err error
	pending := false
	t := &table{header: []string{"WHAT", "PART", "VERSION", "LATEST", "STATE"}}
	if database != "" {
		if doc.Schemas, err = migrations.Status(ctx, database); err != nil {
			return err
		}
	}
	for _, s := range doc.Schemas {
		state := cell{"up to date", "good"}
		if s.Pending() {
			pending, state = true, cell{"pending", "warn"}
		} else if s.Version > s.Latest {
			pending, state = true, cell{"newer than this program", "bad"}
		}
		t.add("schema "+s.Schema, s.Part, s.Version, s.Latest, state)
	}
	if len(brokers) > 0 {
		doc.Topics = "ok"
		state := cell{"ok", "good"}
		if err := checkTopics(ctx, brokers); errors.Is(err, kafka.ErrUnreachable) {
			return err
		} else if err != nil {
			pending, doc.Topics, state = true, err.Error(), cell{err.Error(), "warn"}
		}
		t.add("topics", "", "", "", state)
	}
	if err := one(out, doc, t); err != nil {
		return err
	}
	if pending {
		return fail(exitCheckFailed, "run `orderflow migrate`", "not everything is up to date")
	}
	return nil
}

func checkTopics(ctx context.Context, brokers []string) error {
	client, err := kgo.NewClient(kafka.Options(brokers, nil)...)
	if err != nil {
		return fmt.Errorf("set up the Kafka client: %w", err)
	}
	defer client.Close()
	if err := kafka.Ping(ctx, client, brokers); err != nil {
		return err
	}
	return kafka.CheckTopics(ctx, client)
}
