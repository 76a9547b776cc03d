package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/migrations"
)

// Roles belong to the server, not the database, so all legs share the password that orderflow dev expects.
const rolePassword = migrations.DevRolePassword

// postgres is the server that every leg works on.
type postgres struct {
	*pgserver.Server
	pgbench string
}

func startPostgres(ctx context.Context) (*postgres, error) {
	server, err := pgserver.Start(ctx, nil)
	if err != nil {
		return nil, err
	}
	pgbench := filepath.Join(server.BinDir, "pgbench")
	if _, err := os.Stat(pgbench); err != nil {
		if pgbench, err = exec.LookPath("pgbench"); err != nil {
			server.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended
			return nil, fmt.Errorf("pgbench is not in %s nor on the PATH: install Postgres with it (Debian: apt-get install postgresql)", server.BinDir)
		}
	}
	return &postgres{server, pgbench}, nil
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

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// runPgbench runs the order transaction for d and returns how many of them were committed in a second.
func (p *postgres) runPgbench(ctx context.Context, url string, clients int, d time.Duration) (float64, error) {
	url, err := migrations.RoleURL(url, "orders", rolePassword)
	if err != nil {
		return 0, err
	}
	// As many threads as the api has to share with Postgres here would be unfair to pgbench on a small machine: one does.
	out, err := exec.CommandContext(ctx, p.pgbench, "-n", "-M", "prepared", "-f", "bench/order.pgbench.sql",
		"-c", strconv.Itoa(clients), "-j", "1", "-T", strconv.Itoa(int(d.Seconds())), url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	match := tps.FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("pgbench printed no tps:\n%s", out)
	}
	return strconv.ParseFloat(string(match[1]), 64)
}
