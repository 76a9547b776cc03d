package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestOpenSetsTheTimeoutsOfEverySession(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	tests := []struct {
		name, url string
		opts      postgres.Options
		setting   string
		want      string
	}{
		{"a statement ends after 15 s by default", db.URL, postgres.Options{}, "statement_timeout", "15s"},
		{"a lock is waited for 5 s by default", db.URL, postgres.Options{}, "lock_timeout", "5s"},
		{"a frozen process loses its locks after 10 s by default", db.URL, postgres.Options{}, "idle_in_transaction_session_timeout", "10s"},
		{"options replace defaults", db.URL, postgres.Options{StatementTimeout: time.Minute}, "statement_timeout", "1min"},
		{"a negative timeout is none", db.URL, postgres.Options{LockTimeout: -1}, "lock_timeout", "0"},
		{"the URL wins over options", db.URL + "&statement_timeout=7s", postgres.Options{StatementTimeout: time.Minute}, "statement_timeout", "7s"},
		{"the session names its service", db.URL, postgres.Options{ApplicationName: "email"}, "application_name", "email"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pool, err := postgres.Open(t.Context(), tt.url, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			var got string
			if err := pool.QueryRow(t.Context(), `SELECT current_setting($1)`, tt.setting).Scan(&got); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("Open(%+v): %s = %q, want %q", tt.opts, tt.setting, got, tt.want)
			}
		})
	}
}

func TestOpenLeavesNoPreparedStatementsOnTheServerBehindAPooler(t *testing.T) {
	t.Parallel()
	url := pgtest.NewEmpty(t).URL + "&default_query_exec_mode=cache_describe"
	pool, err := postgres.Open(t.Context(), url, postgres.Options{MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for range 3 {
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements WHERE name <> '' AND $1`, true).Scan(&n); err != nil || n != 0 {
			t.Errorf("prepared statements = %d, %v; want 0, or a pooler hands them to the wrong session", n, err)
		}
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, url string
		want      []string
	}{
		{"nothing listens", "postgres://me:secret@" + nobody + "/shop", []string{nobody, "shop", "start it"}},
		{"an unknown role", strings.Replace(db.RoleURL("ghost"), pgtest.RolePassword, "secret", 1), []string{"ghost", "orderflow migrate"}},
		{"an unknown database", strings.Replace(db.URL, "/test_", "/no_test_", 1), []string{"does not exist", "create it"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := postgres.Open(t.Context(), tt.url, postgres.Options{})
			if !errors.Is(err, postgres.ErrUnreachable) {
				t.Fatalf("Open = %v, want ErrUnreachable", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Open = %v, want it to contain %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("Open = %v, want no password in it", err)
			}
		})
	}
}

func TestOpenWaitsForAPostgresThatComesLate(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	config, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	upstream := net.JoinHostPort(config.Host, portOf(config))
	door := newDoor(t, upstream)
	opened := make(chan error, 1)
	go func() {
		pool, err := postgres.Open(t.Context(), strings.Replace(db.URL, upstream, door.addr, 1), postgres.Options{Wait: await.New(nil, 20*time.Second)})
		if err == nil {
			pool.Close()
		}
		opened <- err
	}()
	<-door.knocked
	door.open()
	if err := <-opened; err != nil {
		t.Errorf("Open of a Postgres that came late = %v, want nil", err)
	}
}

func TestOutageTellsAFaultFromAMistake(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	ctx := t.Context()
	pool, err := postgres.Open(ctx, db.URL, postgres.Options{StatementTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	_, syntax := pool.Exec(ctx, `SELEC`)
	_, division := pool.Exec(ctx, `SELECT 1/0`)
	_, slow := pool.Exec(ctx, `SELECT pg_sleep(60)`)
	_, killed := pool.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
	_, refused := postgres.Open(ctx, "postgres://me@127.0.0.1:1/shop", postgres.Options{})
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"no error", nil, false},
		{"a statement that is wrong", syntax, false},
		{"a statement that fails on its data", division, false},
		{"a statement that ran too long", slow, false},
		{"a session that an administrator ended", killed, true},
		{"a server that does not answer", refused, true},
		{"a full disk", &pgconn.PgError{Code: "53100"}, true},
		{"no connection left", &pgconn.PgError{Code: "53300"}, true},
		{"a server that starts up", &pgconn.PgError{Code: "57P03"}, true},
		{"a standby after a fail-over", &pgconn.PgError{Code: "25006"}, true},
		{"a conflict of two transactions", &pgconn.PgError{Code: "40P01"}, false},
		{"a caller that gave up", context.Canceled, false},
		{"a caller whose time ran out", fmt.Errorf("query: %w", context.DeadlineExceeded), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := postgres.Outage(tt.err); got != tt.want {
				t.Errorf("Outage(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

func TestRetryableMeansThatOthersWereInTheWay(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{"40001": true, "40P01": true, "55P03": true, "23505": false, "57014": false, "08006": false} {
		if got := postgres.Retryable(&pgconn.PgError{Code: code}); got != want {
			t.Errorf("Retryable(%s) = %v, want %v", code, got, want)
		}
	}
}
