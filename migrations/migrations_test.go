package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var withPassword = migrations.Options{RolePassword: pgtest.RolePassword}

func up(t *testing.T, url string, opts migrations.Options) {
	t.Helper()
	if err := migrations.Up(t.Context(), url, opts); err != nil {
		t.Fatalf("Up: %v", err)
	}
}

func status(t *testing.T, url string) []migrations.SchemaStatus {
	t.Helper()
	all, err := migrations.Status(t.Context(), url)
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	return all
}

func TestUpAppliesEverythingOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	for _, s := range status(t, db.URL) {
		if s.Version != 0 || !s.Pending() {
			t.Errorf("status of an empty database = %+v, want version 0 and pending", s)
		}
	}
	up(t, db.URL, withPassword)
	before := status(t, db.URL)
	for _, s := range before {
		if s.Pending() || s.Version == 0 {
			t.Errorf("status after Up = %+v, want nothing pending", s)
		}
	}
	var log bytes.Buffer
	again := withPassword
	again.Log = slog.New(slog.NewTextHandler(&log, nil))
	up(t, db.URL, again)
	if log.Len() > 0 {
		t.Errorf("the second Up applied something:\n%s", log.String())
	}
	if after := status(t, db.URL); !slices.Equal(before, after) {
		t.Errorf("status after the second Up = %v, want %v", after, before)
	}
}

func TestUpBySeveralAtOnce(t *testing.T) {
	t.Parallel()
	// Two databases of one server: the roles are shared, the lock of a database is not.
	first, second := pgtest.NewEmpty(t), pgtest.NewEmpty(t)
	var all errgroup.Group
	for _, url := range []string{first.URL, second.URL, first.URL, second.URL} {
		all.Go(func() error { return migrations.Up(t.Context(), url, withPassword) })
	}
	if err := all.Wait(); err != nil {
		t.Fatalf("Up by four at once: %v", err)
	}
	for _, url := range []string{first.URL, second.URL} {
		for _, s := range status(t, url) {
			if s.Pending() {
				t.Errorf("status after four Ups = %+v, want nothing pending", s)
			}
		}
	}
}

func TestUpRefusesADatabaseOfANewerVersion(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	onlyEmail := withPassword
	onlyEmail.Schemas = []string{"email"}
	up(t, db.URL, onlyEmail)
	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO email.inbox_migrations (version_id, is_applied) VALUES (999, true)`); err != nil {
		t.Fatal(err)
	}
	err := migrations.Up(t.Context(), db.URL, withPassword)
	if !errors.Is(err, migrations.ErrNewer) || !strings.Contains(err.Error(), "999") || !strings.Contains(err.Error(), "email") {
		t.Errorf("Up on a newer database = %v, want ErrNewer with the schema and the version", err)
	}
	var exists bool
	if err := db.Pool.QueryRow(t.Context(), `SELECT to_regnamespace('orders') IS NOT NULL`).Scan(&exists); err != nil || exists {
		t.Errorf("schema orders exists after a refused Up = %v, %v; want false: nothing may change", exists, err)
	}
}

func TestUpOfChosenSchemas(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	up(t, db.URL, migrations.Options{RolePassword: pgtest.RolePassword, Schemas: []string{"warehouse"}})
	for _, s := range status(t, db.URL) {
		if want := s.Schema != "warehouse"; s.Pending() != want {
			t.Errorf("status after Up of warehouse = %+v, want pending %v", s, want)
		}
	}
	err := migrations.Up(t.Context(), db.URL, migrations.Options{Schemas: []string{"warehose"}})
	if err == nil || !strings.Contains(err.Error(), "orders, email, warehouse") {
		t.Errorf("Up of an unknown schema = %v, want an error that lists the known ones", err)
	}
}

// The server is this test's own, because roles belong to a server.
func TestUpNeverInventsAPassword(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp(localpg.Scratch(), "orderflow-migrations-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the server may run as another user
		t.Fatal(err)
	}
	server, err := localpg.Start(t.Context(), localpg.Options{DataDir: filepath.Join(dir, "postgres"), NoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stop the server: %v", err)
		}
	})
	owner := server.URL("postgres")
	err = migrations.Up(t.Context(), owner, migrations.Options{})
	if err == nil || !strings.Contains(err.Error(), "no password") {
		t.Fatalf("first Up without a password = %v, want it refused", err)
	}
	const chosen = "chosen by the operator: '\\"
	up(t, owner, migrations.Options{RolePassword: chosen})
	up(t, owner, migrations.Options{}) // a later release is deployed without it
	url, err := migrations.RoleURL(owner, "orders", chosen)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("log in after an Up without a password: %v, want the role's password unchanged", err)
	}
	_ = conn.Close(t.Context())
}

func TestRoleURLReplacesTheOwner(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, owner, want string
	}{
		{"user and password are replaced", "postgres://owner:secret@db:5432/shop?sslmode=require", "postgres://email:p%2Fw@db:5432/shop?sslmode=require"},
		{"a URL without a user gets one", "postgresql://db/shop", "postgresql://email:p%2Fw@db/shop"},
		{"keywords are refused", "host=db password=secret", ""},
		{"something malformed is refused", "postgres://owner:secret@db:port/shop", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := migrations.RoleURL(tt.owner, "email", "p/w")
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("RoleURL(%q) = %q, %v; want %q", tt.owner, got, err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("RoleURL(%q) = %v, want no password in it", tt.owner, err)
			}
		})
	}
}
