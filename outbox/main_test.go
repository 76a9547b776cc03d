package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func TestMain(m *testing.M) {
	if settings := os.Getenv(processVariable); settings != "" {
		if err := relayProcess(settings); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

// schema of the outbox in tests: not on the search_path, so that an unqualified name is noticed.
const schema = "orders"

// patience is how long a test waits for what must come. Nobody waits for it who succeeds.
const patience = time.Minute

// newOutbox returns a database with an outbox. The migrations run once; each test gets a clone.
func newOutbox(t testing.TB) *pgtest.DB {
	t.Helper()
	return pgtest.New(t, "outbox", migrate)
}

// migrate makes the outbox in schema, in the database at url.
func migrate(ctx context.Context, url string) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	config.RuntimeParams["search_path"] = schema
	db := stdlib.OpenDB(*config)
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(ctx, `CREATE SCHEMA `+schema); err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, outbox.Migrations(), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// start runs a relay until the test ends or stop is called, which checks what Run returned.
//
// Its lease is a minute unless opts say otherwise: a leader that loses it, because the machine is slow, publishes again. That
// is allowed, and hides what a test wants to see that counts each record.
func start(
	t testing.TB, pool *pgxpool.Pool, publisher outbox.Publisher, opts outbox.RelayOptions, prepare ...func(*outbox.Relay),
) (*outbox.Relay, func()) {
	t.Helper()
	opts.Schema = schema
	if opts.Lease == 0 {
		opts.Lease = time.Minute
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	relay, err := outbox.NewRelay(pool, publisher, opts)
	if err != nil {
		t.Fatalf("NewRelay: %v", err)
	}
	for _, change := range prepare {
		change(relay)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v, want nil when ctx ends", err)
		}
	}
	t.Cleanup(stop)
	return relay, stop
}

// message returns the nth message of a key.
func message(topic, key string, n int) outbox.Message {
	return outbox.Message{
		Topic: topic, Key: key, Type: "test.happened.v1", Subject: fmt.Sprint(n), Payload: fmt.Appendf(nil, `{"n":%d}`, n),
	}
}

// write commits one transaction with msgs.
func write(t testing.TB, pool *pgxpool.Pool, msgs ...outbox.Message) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return outbox.Writer{Schema: schema}.Write(t.Context(), tx, msgs...)
	})
	if err != nil {
		t.Fatalf("write %d messages: %v", len(msgs), err)
	}
}

// waitFor waits until the broker has n different messages.
func waitFor(t testing.TB, broker *outboxtest.Broker, n int) []outbox.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := broker.Wait(ctx, func(records []outbox.Record) bool { return distinct(records) >= n }); err != nil {
		t.Fatalf("want %d messages: %v", n, err)
	}
	return broker.Records()
}

func distinct(records []outbox.Record) int {
	ids := map[uuid.UUID]bool{}
	for _, r := range records {
		ids[r.ID] = true
	}
	return len(ids)
}

// eventually asks until ok says nil, or fails the test with its last answer.
func eventually(t testing.TB, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(errors.Join(err, t.Context().Err()))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

type roleDB struct {
	role string
	pool *pgxpool.Pool
}

// createRole makes a login role for this test and connects as it.
func createRole(t testing.TB, db *pgtest.DB, name string) roleDB {
	t.Helper()
	role := fmt.Sprintf("%s_%s", name, uuid.NewString()[:8])
	ctx := context.WithoutCancel(t.Context())
	if _, err := db.Pool.Exec(ctx, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s'`, role, pgtest.RolePassword)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(ctx, fmt.Sprintf(`DROP OWNED BY %s; DROP ROLE %s`, role, role)); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.Pool.Exec(ctx, `GRANT USAGE ON SCHEMA `+schema+` TO `+role); err != nil {
		t.Fatal(err)
	}
	return roleDB{role, db.RolePool(role)}
}
