package main

import (
	"context"
	"net/url"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/postgres"
)

func addDatabaseFlag(cmd *cobra.Command) {
	cmd.Flags().String("database-url", "", "the owner's Postgres URL (default: the running orderflow dev's)")
	addDataDirFlag(cmd)
}

// ownerURL returns the database that the flags name, or the running development system's.
func ownerURL(cmd *cobra.Command) (string, error) {
	if named := stringFlag(cmd, "database-url"); named != "" {
		return named, nil
	}
	ready, err := running(cmd, "--database-url URL")
	return ready.Postgres, err
}

// openSchema opens a small pool whose unqualified names are those of schema. The caller closes it.
func openSchema(ctx context.Context, ownerURL, schema string) (*pgxpool.Pool, error) {
	u, err := url.Parse(ownerURL)
	if err != nil {
		return nil, usage("write postgres://USER:PASSWORD@HOST:PORT/DATABASE", "the database URL cannot be read")
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return postgres.Open(ctx, u.String(), postgres.Options{ApplicationName: "orderflow-cli", MaxConns: 2})
}
