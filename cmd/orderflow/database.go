package main

import (
	"context"
	"errors"
	"net/url"

	"github.com/jackc/pgx/v5/pgconn"
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
	return openSchemaWith(ctx, ownerURL, schema, 2)
}

// openSchemaWith is openSchema with that many connections at most.
func openSchemaWith(ctx context.Context, ownerURL, schema string, conns int32) (*pgxpool.Pool, error) {
	u, err := url.Parse(ownerURL)
	if err != nil {
		return nil, usage("write postgres://USER:PASSWORD@HOST:PORT/DATABASE", "the database URL cannot be read")
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return postgres.Open(ctx, u.String(), postgres.Options{ApplicationName: "orderflow-cli", MaxConns: conns})
}

// openOwner opens the orders schema of the database that the flags name. The caller closes it.
func openOwner(cmd *cobra.Command) (*pgxpool.Pool, error) {
	url, err := ownerURL(cmd)
	if err != nil {
		return nil, err
	}
	return openSchema(cmd.Context(), url, "orders")
}

// ownerError adds what to do to the errors of a database that is not migrated, or that the URL's user does not own.
func ownerError(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && (pgErr.Code == "42P01" || pgErr.Code == "3F000"):
		return fail(exitFailure, "run `orderflow migrate`", "the database is not migrated: %w", err)
	case ok && pgErr.Code == "42501":
		return fail(exitFailure, "use the owner's URL, the one that `orderflow migrate` is run with", "%w", err)
	}
	return err
}
