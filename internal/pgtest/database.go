package pgtest

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// RolePassword is the password of every role that migrations create in a test database.
const RolePassword = "orderflow-dev-only" //nolint:gosec // public on purpose: tests only

// DB is one test's database. It is dropped when the test ends.
type DB struct {
	// URL connects as the owner of everything in the database.
	URL string
	// Pool is connected as the owner. It is closed when the test ends.
	Pool *pgxpool.Pool

	t    testing.TB
	name string
}

// NewEmpty returns a database with nothing in it.
func NewEmpty(t testing.TB) *DB {
	t.Helper()
	return create(t, "template0")
}

// New returns a database that prepare has filled. prepare is called with the owner's URL, once per test binary and
// name: later tests get clones of what it made.
func New(t testing.TB, name string, prepare func(ctx context.Context, ownerURL string) error) *DB {
	t.Helper()
	template, err := shared.template(t.Context(), name, prepare)
	if err != nil {
		t.Fatalf("pgtest: prepare template %s: %v", name, err)
	}
	return create(t, template)
}

func (s *server) template(ctx context.Context, name string, prepare func(context.Context, string) error) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	admin, err := s.url(ctx)
	if err != nil {
		return "", err
	}
	if template, ok := s.templates[name]; ok {
		return template, nil
	}
	template := fmt.Sprintf("template_%s_%s", name, s.run)
	if err := s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{template}.Sanitize()+" TEMPLATE template0"); err != nil {
		return "", err
	}
	s.templates[name] = template
	target, err := withDatabase(admin, template)
	if err != nil {
		return "", err
	}
	if err := prepare(ctx, target); err != nil {
		delete(s.templates, name)
		return "", err
	}
	return template, nil
}

func create(t testing.TB, template string) *DB {
	t.Helper()
	ctx := t.Context()
	shared.mu.Lock()
	admin, err := shared.url(ctx)
	shared.databases++
	name := fmt.Sprintf("test_%d_%s", shared.databases, shared.run)
	shared.mu.Unlock()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	quoted := pgx.Identifier{name}.Sanitize()
	if err := shared.exec(ctx, "CREATE DATABASE "+quoted+" TEMPLATE "+pgx.Identifier{template}.Sanitize()+" STRATEGY file_copy"); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := shared.exec(ctx, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	target, err := withDatabase(admin, name)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	db := &DB{URL: target, t: t, name: name}
	db.Pool = db.open(target)
	return db
}

// Migrate applies a folder of goose migrations inside schema, which it creates when missing.
func (db *DB) Migrate(t testing.TB, fsys fs.FS, schema string) {
	t.Helper()
	ctx := t.Context()
	if _, err := db.Pool.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize()); err != nil {
		t.Fatalf("pgtest: create schema %s: %v", schema, err)
	}
	config, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	config.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize() + ", pg_temp"
	conn := stdlib.OpenDB(*config)
	defer func() { _ = conn.Close() }()
	if err := up(ctx, conn, fsys); err != nil {
		t.Fatalf("pgtest: migrate schema %s: %v", schema, err)
	}
}

// up runs each library's folder under a version table of its own, found by the folder's content: two libraries may both
// have a migration 1.
func up(ctx context.Context, conn *sql.DB, fsys fs.FS) error {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil || len(names) == 0 {
		return fmt.Errorf("list migrations: found %d, %w", len(names), err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, fsys,
		goose.WithTableName("pgtest_"+tableSuffix(names[0])), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("apply migrations: %w", err)
	}
	return nil
}

// tableSuffix turns a file name such as 00001_outbox.sql into a part of a table name.
func tableSuffix(file string) string {
	out := []byte{}
	for i := range len(file) {
		if c := file[i]; c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			out = append(out, c)
		}
	}
	return string(out)
}

// RoleURL returns the connection URL of a role that migrations have created.
func (db *DB) RoleURL(role string) string {
	u, err := url.Parse(db.URL)
	if err != nil {
		db.t.Fatalf("pgtest: %v", err)
	}
	u.User = url.UserPassword(role, RolePassword)
	return u.String()
}

// RolePool returns a pool connected as a role that migrations have created. It is closed when the test ends.
func (db *DB) RolePool(role string) *pgxpool.Pool {
	db.t.Helper()
	return db.open(db.RoleURL(role))
}

// open connects a small pool: a server has 200 connections for all tests that run at once.
func (db *DB) open(target string) *pgxpool.Pool {
	db.t.Helper()
	config, err := pgxpool.ParseConfig(target)
	if err != nil {
		db.t.Fatalf("pgtest: %v", err)
	}
	config.MaxConns = 8
	pool, err := pgxpool.NewWithConfig(db.t.Context(), config)
	if err != nil {
		db.t.Fatalf("pgtest: %v", err)
	}
	db.t.Cleanup(func() { closePool(db.t, pool) })
	return pool
}

// closePool fails the test when it still holds a connection: Close alone would wait for it for ever.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Errorf("pgtest: %d connections are still in use 30 s after the end of the test", pool.Stat().AcquiredConns())
	}
}

func withDatabase(target, name string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("read the test server's URL: %w", err)
	}
	u.Path = "/" + name
	return u.String(), nil
}
