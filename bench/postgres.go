package main

import (
	"context"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/migrations"
)

// Roles belong to the server, not the database, so all legs share the password that orderflow dev expects.
const rolePassword = migrations.DevRolePassword

// postgres is the server that every leg works on.
type postgres struct{ *pgserver.Server }

func startPostgres(ctx context.Context) (*postgres, error) {
	server, err := pgserver.Start(ctx, nil)
	if err != nil {
		return nil, err
	}
	return &postgres{server}, nil
}

// database makes a database with every schema and the catalog in it and returns its owner's URL.
func (p *postgres) database(ctx context.Context, name string) (string, error) {
	url, err := p.Create(ctx, name)
	if err != nil {
		return "", err
	}
	if err := migrations.Up(ctx, url, migrations.Options{RolePassword: rolePassword}); err != nil {
		return "", err
	}
	return url, seed(ctx, url)
}

// runPgbench runs the order transaction for d and returns how many of them were committed in a second.
func (p *postgres) runPgbench(ctx context.Context, url string, clients int, d time.Duration) (float64, error) {
	url, err := migrations.RoleURL(url, "orders", rolePassword)
	if err != nil {
		return 0, err
	}
	return p.Pgbench(ctx, url, "bench/order.pgbench.sql", clients, d)
}
