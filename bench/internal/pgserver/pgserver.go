// Package pgserver starts the Postgres that a benchmark measures on: one of its own, with fsync on as in production.
package pgserver

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/localpg"
)

// Server is a running Postgres. Its owner calls [Server.Stop].
type Server struct {
	// Dir is a temporary folder, removed by [Server.Stop].
	Dir string
	// BinDir is where the server's programs are.
	BinDir string

	local *localpg.Server
}

// Start starts a server with parameters beside those that every benchmark has.
func Start(ctx context.Context, parameters map[string]string) (*Server, error) {
	binaries, err := localpg.Find(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: install Postgres with pgbench (Debian: apt-get install postgresql)", err)
	}
	dir, err := os.MkdirTemp("", "orderflow-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for Postgres: %w", err)
	}
	s := &Server{Dir: dir, BinDir: binaries.Dir}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // started as root, Postgres runs as a user of its own
		s.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended
		return nil, fmt.Errorf("open the folder for Postgres: %w", err)
	}
	settings := map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "200"}
	maps.Copy(settings, parameters)
	s.local, err = localpg.Start(ctx, localpg.Options{DataDir: filepath.Join(dir, "postgres"), BinDir: binaries.Dir, Parameters: settings})
	if err != nil {
		s.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	return s, nil
}

// Stop ends the server and removes what it kept.
func (s *Server) Stop() {
	if s.local != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.local.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop Postgres:", err)
		}
	}
	_ = os.RemoveAll(s.Dir) // a temporary folder: what stays is the system's to clean
}

// URL returns the superuser's URL of a database.
func (s *Server) URL(database string) string { return s.local.URL(database) }

// Create makes an empty database and returns its owner's URL.
func (s *Server) Create(ctx context.Context, name string) (string, error) {
	return s.URL(name), s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
}

// Drop removes a database and whoever is connected to it.
func (s *Server) Drop(ctx context.Context, name string) error {
	return s.exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
}

func (s *Server) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
