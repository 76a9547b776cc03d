package pgtest_test

import (
	"context"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestDatabasesDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	first, second := pgtest.NewEmpty(t), pgtest.NewEmpty(t)
	if _, err := first.Pool.Exec(t.Context(), `CREATE TABLE mine ()`); err != nil {
		t.Fatal(err)
	}
	var found bool
	if err := second.Pool.QueryRow(t.Context(), `SELECT to_regclass('mine') IS NOT NULL`).Scan(&found); err != nil {
		t.Fatal(err)
	}
	if found {
		t.Error("a table of one test's database is visible in another's")
	}
}

func TestNewClonesWhatWasPreparedOnce(t *testing.T) {
	t.Parallel()
	calls := 0
	prepare := func(ctx context.Context, url string) error {
		calls++
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		defer pool.Close()
		_, err = pool.Exec(ctx, `CREATE TABLE prepared AS SELECT 1 AS one`)
		return err
	}
	for range 3 {
		began := time.Now()
		db := pgtest.New(t, "counted", prepare)
		t.Logf("New took %v", time.Since(began))
		var one int
		if err := db.Pool.QueryRow(t.Context(), `SELECT one FROM prepared`).Scan(&one); err != nil || one != 1 {
			t.Errorf("prepared row = %d, %v; want 1", one, err)
		}
	}
	if calls != 1 {
		t.Errorf("prepare ran %d times for 3 databases, want 1", calls)
	}
}

func TestMigrateUsesTheSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	library := func(table string) fstest.MapFS {
		return fstest.MapFS{"00001_" + table + ".sql": {Data: []byte("-- +goose Up\nCREATE TABLE " + table + " ();\n")}}
	}
	db.Migrate(t, library("outbox"), "orders")
	db.Migrate(t, library("inbox"), "orders")
	db.Migrate(t, library("outbox"), "email")
	for _, table := range []string{"orders.outbox", "orders.inbox", "email.outbox"} {
		var found bool
		if err := db.Pool.QueryRow(t.Context(), `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&found); err != nil || !found {
			t.Errorf("table %s found = %v, %v; want true", table, found, err)
		}
	}
}
