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

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/migrations"
)

// Roles belong to the server, not the database, so all legs share the password that orderflow dev expects.
const rolePassword = migrations.DevRolePassword

// postgres is the server that every leg works on, with fsync on as in production.
type postgres struct {
	server  *localpg.Server
	dir     string
	pgbench string
}

func startPostgres(ctx context.Context) (*postgres, error) {
	binaries, err := localpg.Find(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: install Postgres with pgbench (Debian: apt-get install postgresql)", err)
	}
	pgbench := filepath.Join(binaries.Dir, "pgbench")
	if _, err := os.Stat(pgbench); err != nil {
		if pgbench, err = exec.LookPath("pgbench"); err != nil {
			return nil, fmt.Errorf("pgbench is not in %s nor on the PATH: install Postgres with it (Debian: apt-get install postgresql)", binaries.Dir)
		}
	}
	dir, err := os.MkdirTemp("", "orderflow-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for Postgres: %w", err)
	}
	p := &postgres{dir: dir, pgbench: pgbench}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // started as root, Postgres runs as a user of its own
		p.stop() //nolint:contextcheck // it stops what was started also when ctx has ended
		return nil, fmt.Errorf("open the folder for Postgres: %w", err)
	}
	p.server, err = localpg.Start(ctx, localpg.Options{
		DataDir:    filepath.Join(dir, "postgres"),
		BinDir:     binaries.Dir,
		Parameters: map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "200"},
	})
	if err != nil {
		p.stop() //nolint:contextcheck // it stops what was started also when ctx has ended
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	return p, nil
}

func (p *postgres) stop() {
	if p.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := p.server.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop Postgres:", err)
		}
	}
	_ = os.RemoveAll(p.dir) // a temporary folder: what stays is the system's to clean
}

// database makes a database with every schema and the catalog in it and returns its owner's URL.
func (p *postgres) database(ctx context.Context, name string) (string, error) {
	url, err := p.emptyDatabase(ctx, name)
	if err != nil {
		return "", err
	}
	if err := migrations.Up(ctx, url, migrations.Options{RolePassword: rolePassword}); err != nil {
		return "", err
	}
	return url, seed(ctx, url)
}

func (p *postgres) emptyDatabase(ctx context.Context, name string) (string, error) {
	conn, err := pgx.Connect(ctx, p.server.URL("postgres"))
	if err != nil {
		return "", fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	return p.server.URL(name), nil
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
