package inbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	topic  = "orders"
	placed = "order.placed.v1"
)

// world is a database with the inbox, the outbox and a table of effects, and a broker.
type world struct {
	*testing.T
	db     *pgtest.DB
	broker *kafkatest.Broker
	client *kgo.Client // produces; one for all, for a test may produce a hundred times
	adm    *kadm.Client
	anyID  bool // the messages have other ids than UUIDv7, and the inbox no ring
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, kafkatest.New(t, topics()...))
}

func newWorldOn(t *testing.T, broker *kafkatest.Broker) *world {
	t.Helper()
	client := broker.Client(t)
	return &world{T: t, db: newDatabase(t), broker: broker, client: client, adm: kadm.NewClient(client)}
}

// newFaultyWorld is a world whose broker can be made to misbehave.
func newFaultyWorld(t *testing.T) (*world, *kfake.Cluster) {
	t.Helper()
	fake := kafkatest.NewFake(t, kfake.SeedTopics(kafkatest.Partitions, topics()...))
	return newWorldOn(t, fake.Broker), fake.Cluster
}

func topics() []string { return []string{topic, "other", "test.dlq"} }

// onEachTable runs a test on the ring of processed_messages, and on the table for any id with ids that are no UUID.
func onEachTable(t *testing.T, test func(w *world)) {
	t.Helper()
	t.Run("ring", func(t *testing.T) {
		t.Parallel()
		test(newWorld(t))
	})
	t.Run("any id", func(t *testing.T) {
		t.Parallel()
		test(newAnyIDWorld(t))
	})
}

func newDatabase(t testing.TB) *pgtest.DB {
	t.Helper()
	return pgtest.New(t, "inbox", migrate)
}

func newDatabaseAnyID(t testing.TB) *pgtest.DB {
	t.Helper()
	return pgtest.New(t, "inbox_anyid", func(ctx context.Context, url string) error {
		return migrateWith(ctx, url, inbox.MigrationsAnyID())
	})
}

// migrate makes the tables of the tests in the database of url.
func migrate(ctx context.Context, url string) error { return migrateWith(ctx, url, inbox.Migrations()) }

func migrateWith(ctx context.Context, url string, inboxFiles fs.FS) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	for table, files := range map[string]fs.FS{"outbox_migrations": outbox.Migrations(), "inbox_migrations": inboxFiles} {
		p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(table))
		if err != nil {
			return err
		}
		if _, err := p.Up(ctx); err != nil {
			return err
		}
	}
	_, err = db.ExecContext(ctx, `
		CREATE TABLE effects (
			n   bigint GENERATED ALWAYS AS IDENTITY,
			key text   NOT NULL,
			id  uuid   NOT NULL,
			seq int    NOT NULL
		);
		CREATE TABLE shared (sku text PRIMARY KEY, sold int NOT NULL)`)
	return err
}

// body is the payload of the tests' messages.
type body struct {
	Seq  int    `json:"seq"`
	What string `json:"what,omitempty"`
}

// record is a message as a relay would publish it.
func record(key string, seq int, what string) *kgo.Record {
	payload, err := json.Marshal(body{seq, what})
	if err != nil {
		panic(err)
	}
	return withHeaders(&kgo.Record{Topic: topic, Key: []byte(key), Value: payload}, uuid.Must(uuid.NewV7()), placed)
}

func withHeaders(rec *kgo.Record, id uuid.UUID, typ string) *kgo.Record {
	rec.Headers = []kgo.RecordHeader{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(id.String())},
		{Key: "ce_type", Value: []byte(typ)},
		{Key: "ce_source", Value: []byte("/test")},
		{Key: "ce_time", Value: []byte(time.Now().UTC().Format(time.RFC3339Nano))},
		{Key: "content-type", Value: []byte("application/json")},
	}
	return rec
}

// apply is the effect of a message: one row.
func apply(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	var b body
	if err := json.Unmarshal(m.Payload, &b); err != nil {
		return inbox.Permanent(err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (key, id, seq) VALUES ($1, $2::text::uuid, $3)`, m.Key, m.ID.String(), b.Seq)
	return err
}

func what(m inbox.Message) string {
	var b body
	_ = json.Unmarshal(m.Payload, &b) // "" for a payload without it
	return b.What
}

// options are quick ones: retries and drains within milliseconds.
func (w *world) options() inbox.Options {
	return inbox.Options{
		AnyID:      w.anyID,
		Kafka:      []kgo.Opt{kgo.SeedBrokers(w.broker.Addrs...), kgo.FetchMaxWait(50 * time.Millisecond), kgo.MetadataMinAge(20 * time.Millisecond)},
		RetryMin:   20 * time.Millisecond,
		RetryMax:   200 * time.Millisecond,
		DrainEvery: 20 * time.Millisecond, CommitEvery: 20 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(testWriter{w.T}, &slog.HandlerOptions{Level: slog.LevelError})),
	}
}

// testWriter puts the consumer's log into the test's, while the test runs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(string(p))
	}
	return len(p), nil
}

// start runs a consumer of group "test" until stop is called or the test ends.
func (w *world) start(handle inbox.Handler, opts inbox.Options) (stop func()) {
	w.Helper()
	return w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, Handle: handle}}, opts)
}

func (w *world) startRoutes(routes []inbox.Route, opts inbox.Options) (stop func()) {
	w.Helper()
	return w.run(w.consumer(routes, opts))
}

func (w *world) consumer(routes []inbox.Route, opts inbox.Options) *inbox.Consumer {
	w.Helper()
	c, err := inbox.NewConsumer(w.db.Pool, "test", routes, opts)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// run runs c until stop is called or the test ends.
func (w *world) run(c *inbox.Consumer) (stop func()) {
	w.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	running := true
	stop = func() {
		if !running {
			return
		}
		running = false
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				w.Errorf("Run() = %v, want nil", err)
			}
		case <-time.After(30 * time.Second):
			w.Error("Run() has not returned 30 s after its context ended")
		}
	}
	w.Cleanup(stop)
	return stop
}

// produce publishes records in order and waits for the acks.
func (w *world) produce(records ...*kgo.Record) {
	w.Helper()
	if w.anyID {
		for _, rec := range records {
			otherID(rec)
		}
	}
	if err := w.client.ProduceSync(w.Context(), records...).FirstErr(); err != nil {
		w.Fatalf("produce: %v", err)
	}
}

// otherID makes the record's id one that is no UUID.
func otherID(rec *kgo.Record) {
	for i, h := range rec.Headers {
		if h.Key == "ce_id" && len(h.Value) == 36 {
			rec.Headers[i].Value = append([]byte("event "), h.Value...)
		}
	}
}

// wait polls until ok, and fails the test with what was awaited after two minutes.
func (w *world) wait(what string, ok func() bool) {
	w.Helper()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			w.Fatalf("not within two minutes: %s\nparked: %s", what, w.describeParked())
		case <-tick.C:
		}
	}
}

func (w *world) describeParked() string {
	parked, err := inbox.ListParked(w.Context(), w.db.Pool, inbox.Filter{})
	if err != nil {
		return err.Error()
	}
	s := ""
	for _, p := range parked {
		s += fmt.Sprintf("\n%d %s %s attempts %d %s: %s", p.ID, p.Key, p.State, p.Attempts, p.Class, p.Error)
	}
	return s
}

// count returns the result of a query for one number.
func (w *world) count(query string, args ...any) int {
	w.Helper()
	var n int
	if err := w.db.Pool.QueryRow(w.Context(), query, args...).Scan(&n); err != nil {
		w.Fatalf("%s: %v", query, err)
	}
	return n
}

// effects returns the seqs applied for a key, in the order of their application.
func (w *world) effects(key string) []int {
	w.Helper()
	rows, _ := w.db.Pool.Query(w.Context(), `SELECT seq FROM effects WHERE key = $1 ORDER BY n`, key) // CollectRows reports the error
	seqs, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		w.Fatal(err)
	}
	return seqs
}

func (w *world) wantEffects(key string, want ...int) {
	w.Helper()
	if got := w.effects(key); !slices.Equal(got, want) {
		w.Errorf("effects of %s = %v, want %v%s", key, got, want, w.describeParked())
	}
}

func (w *world) parked(f inbox.Filter) []inbox.Parked {
	w.Helper()
	parked, err := inbox.ListParked(w.Context(), w.db.Pool, f)
	if err != nil {
		w.Fatal(err)
	}
	return parked
}
