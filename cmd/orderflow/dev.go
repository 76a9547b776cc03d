package main

import (
	"errors"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/dev"
	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/localpg"
)

func newDev() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run the whole system in this process",
		Long: `Runs Postgres, a Kafka broker, Redis, the sandbox (payments and mail) and every service in one process, with nothing to
install but Postgres, and not even that where a download is allowed. Data is kept between runs. The first start adds a
catalog and 25 orders.

A Postgres of your own (--pg-url) becomes a development system: the roles of the services, which belong to the whole server,
get the public development password, and its api accepts the public key. Never name one that others can reach.

The services log to dev.log in the data folder; --verbose shows it here. Ctrl-C stops everything in order.`,
		Example: `  orderflow dev
  orderflow dev --ephemeral --ready-file /tmp/ready.json
  orderflow dev --pg-url postgres://me@localhost/orderflow --kafka localhost:9092`,
		Args: cobra.NoArgs,
		RunE: runDev,
	}
	f := cmd.Flags()
	f.String("data-dir", dev.DefaultDataDir(), "folder to keep the data in")
	f.Bool("ephemeral", false, "use a new temporary folder, whatever ORDERFLOW_DATA_DIR says, and remove it at the end")
	f.String("ready-file", "", "file to write addresses to once everything is ready, as JSON, in addition to ready.json in the data folder")
	f.String("pg-url", "", "use this Postgres: the URL of an owner who may create schemas and roles; its roles get the public development password (default: a private one)")
	f.StringSlice("kafka", nil, "use these brokers, host:port (default: an embedded one)")
	f.String("redis", "", "use this Redis, redis://host:port/0 (default: one in this process)")
	f.Int("api-port", 0, "port of the api (default: 8080, or a free one when it is taken)")
	f.Int("pg-port", 0, "port of the private Postgres (default: 54320, or a free one)")
	f.Int("kafka-port", 0, "port of the embedded broker (default: 9092, or a free one)")
	f.Int("redis-port", 0, "port of the Redis in this process (default: 63790, or a free one)")
	f.Int("smtp-port", 0, "port of the sandbox's mail catcher (default: 1025, or a free one)")
	f.Int("sandbox-port", 0, "port of the sandbox's HTTP (default: 8090, or a free one)")
	f.Int("seed-orders", 25, "number of orders that the first start places")
	f.BoolP("verbose", "v", false, "show the services' log here as well")
	f.String("log-level", "info", "what to log: debug, info, warn or error")
	return cmd
}

func runDev(cmd *cobra.Command, _ []string) error {
	opts, err := devOptions(cmd)
	if err != nil {
		return err
	}
	return devError(dev.Run(cmd.Context(), opts))
}

func devOptions(cmd *cobra.Command) (dev.Options, error) {
	f := cmd.Flags()
	number := func(name string) int { n, _ := f.GetInt(name); return n }
	brokers, err := f.GetStringSlice("kafka")
	if err != nil {
		return dev.Options{}, err
	}
	ephemeral, _ := f.GetBool("ephemeral")
	opts := dev.Options{
		DataDir: stringFlag(cmd, "data-dir"), Ephemeral: ephemeral, ReadyFile: stringFlag(cmd, "ready-file"),
		PostgresURL: stringFlag(cmd, "pg-url"), Kafka: brokers, Redis: stringFlag(cmd, "redis"), Seed: number("seed-orders"),
		Ports: dev.Ports{
			API: number("api-port"), Postgres: number("pg-port"), Kafka: number("kafka-port"),
			Redis: number("redis-port"), SMTP: number("smtp-port"), Sandbox: number("sandbox-port"),
		},
		Command: os.Args[0], Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), LogLevel: stringFlag(cmd, "log-level"),
	}
	opts.Verbose, _ = f.GetBool("verbose")
	if opts.Seed == 0 {
		opts.Seed = -1 // zero asks for the default
	}
	if ephemeral && config.OnCommandLine(f.Lookup("data-dir")) {
		return opts, usage("", "--ephemeral and --data-dir exclude each other")
	}
	return opts, nil
}

// devError adds what the user can do about it.
func devError(err error) error {
	var inUse *dev.InUse
	var password *dev.RolePassword
	switch {
	case errors.As(err, &inUse):
		return &failure{code: exitConflict, err: err, hint: "use it, end it with Ctrl-C where it runs, or start another one with --data-dir DIR"}
	case errors.As(err, &password):
		return &failure{code: exitConflict, err: err, hint: "if others use it, leave it alone and name another one with --pg-url;\n" +
			"to make a development system of it: orderflow migrate --dev --database-url URL"}
	case errors.Is(err, localpg.ErrNoBinaries):
		return &failure{code: exitUnreachable, err: err, hint: "1. install Postgres (Debian, Ubuntu: apt install postgresql; macOS: brew install postgresql), or\n" +
			"2. name a running one: orderflow dev --pg-url postgres://USER:PASSWORD@HOST/DATABASE, or\n" +
			"3. let this machine reach the internet, and it is downloaded"}
	case errors.Is(err, syscall.EADDRINUSE):
		return &failure{code: exitFailure, err: err, hint: "leave the flag out to have a free port chosen, or see what listens there: ss -ltnp"}
	}
	return err
}
