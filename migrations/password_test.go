package migrations_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/migrations"
)

func TestTheServerNeverSeesARolesPassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // Postgres runs as another user when the tests run as root
		t.Fatal(err)
	}
	server, err := localpg.Start(t.Context(), localpg.Options{DataDir: dir, NoFsync: true, Parameters: map[string]string{"log_statement": "all"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop(context.WithoutCancel(t.Context())) })
	const password = `it's a "secret" \ of $1 %s`
	up(t, server.URL("postgres"), migrations.Options{RolePassword: password})

	for _, role := range []string{"orders", "email_relay"} {
		url, err := migrations.RoleURL(server.URL("postgres"), role, password)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatalf("log in as %s: %v", role, err)
		}
		_ = conn.Close(t.Context())
	}
	owner, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Close(context.WithoutCancel(t.Context())) }()
	var kept string
	if err := owner.QueryRow(t.Context(), `SELECT rolpassword FROM pg_authid WHERE rolname = 'orders'`).Scan(&kept); err != nil || !strings.HasPrefix(kept, "SCRAM-SHA-256$4096:") {
		t.Errorf("pg_authid holds %q, %v; want a SCRAM-SHA-256 verifier", kept, err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "ALTER ROLE") {
		t.Fatal("the log holds no ALTER ROLE: the test proves nothing")
	}
	for _, line := range strings.Split(string(log), "\n") {
		if strings.Contains(line, `"secret"`) {
			t.Errorf("the server's log holds the password: %s", line)
		}
	}
}

func TestARolePasswordIsOfCharactersThatEveryClientSendsAlike(t *testing.T) {
	t.Parallel()
	err := migrations.Up(t.Context(), pgtest.NewEmpty(t).URL, migrations.Options{RolePassword: "pässword"})
	if err == nil || !strings.Contains(err.Error(), "ASCII") || strings.Contains(err.Error(), "pässword") {
		t.Errorf("Up = %v, want it refused, without the password", err)
	}
}
