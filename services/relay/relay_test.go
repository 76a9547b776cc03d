package relay

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// running runs the service until the test ends.
func running(t *testing.T, log *slog.Logger, cfg Config) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, log, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil after its context ended", err)
		}
	})
}

// write commits one message to the outbox of schema, as the service does that owns it.
func write(t *testing.T, db *pgtest.DB, schema, topic, subject string) {
	t.Helper()
	pool := db.RolePool(schema)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return outbox.Write(t.Context(), tx, outbox.Message{Topic: topic, Key: "ada", Type: "test.happened.v1", Subject: subject, Payload: []byte(`{}`)})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// addresses takes a JSON log and passes on the addresses in it.
type addresses chan string

func (a addresses) Write(line []byte) (int, error) {
	var said struct{ Addr string }
	if err := json.Unmarshal(line, &said); err != nil {
		return 0, err
	}
	if said.Addr != "" {
		a <- said.Addr
	}
	return len(line), nil
}

func TestRunPublishesEveryOutboxAsItsOwnRole(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	broker := kafkatest.New(t, event.Topics()...)
	cfg := Config{Brokers: broker.Addrs, OpsAddr: "127.0.0.1:0"}
	for _, schema := range []string{"orders", "email", "warehouse"} {
		cfg.Sources = append(cfg.Sources, Source{Schema: schema, DatabaseURL: db.RoleURL(schema + "_relay")})
	}
	served := make(addresses, 1)
	running(t, slog.New(slog.NewJSONHandler(served, nil)), cfg)
	topics := map[string]string{"orders": event.Orders, "email": event.DeadLetters(event.GroupEmail), "warehouse": event.Shipments}
	for schema, topic := range topics {
		write(t, db, schema, topic, "about-"+schema)
	}
	got := map[string]string{}
	for _, r := range broker.Read(t, 3, event.Topics()...) {
		got[header(r, "ce_source")] = r.Topic + " " + header(r, "ce_subject")
	}
	for schema, topic := range topics {
		if want := topic + " about-" + schema; got["/"+schema] != want {
			t.Errorf("outbox of %s published %q, want %q", schema, got["/"+schema], want)
		}
	}
	waitReady(t, "http://"+<-served+"/readyz")
}

func waitReady(t *testing.T, url string) {
	t.Helper()
	said := waitAnswer(t, url, http.StatusOK, "")
	for _, schema := range []string{"orders", "email", "warehouse"} {
		if !strings.Contains(said, `"outbox `+schema+`":"ok"`) {
			t.Errorf("readyz = %s, want a check of each outbox", said)
		}
	}
}

// waitAnswer waits until url answers with status and a body that contains part, and returns the body.
func waitAnswer(t *testing.T, url string, status int, part string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		said := "no answer"
		if resp, err := client.Get(url); err == nil {
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if said = string(body); resp.StatusCode == status && strings.Contains(said, part) {
				return said
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not answer %d with %q: %s", url, status, part, said)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// The process is well all the time; what counts is whether messages leave. One outbox in trouble does not hold up another.
func TestReadyzTurnsRedOnTheAgeOfTheOldestUnpublishedMessage(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	broker := kafkatest.New(t, event.Topics()...)
	served := make(addresses, 1)
	cfg := Config{Brokers: broker.Addrs, OpsAddr: "127.0.0.1:0"}
	for _, schema := range []string{"orders", "email", "warehouse"} {
		cfg.Sources = append(cfg.Sources, Source{Schema: schema, DatabaseURL: db.RoleURL(schema + "_relay")})
	}
	running(t, slog.New(slog.NewJSONHandler(served, nil)), cfg)
	base := "http://" + <-served
	waitReady(t, base+"/readyz")

	// The relay can look, lead and send, but not save how far it is.
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE orders.outbox_cursor IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.outbox (id, topic, key, type, content_type, payload, created_at)
		VALUES (gen_random_uuid(), $1, 'ada', 'test.happened.v1', 'application/json', '{}', clock_timestamp() - interval '31 seconds')`,
		event.Orders); err != nil {
		t.Fatal(err)
	}
	said := waitAnswer(t, base+"/readyz", http.StatusServiceUnavailable, "the oldest of 1 unpublished messages waits for")
	if !strings.Contains(said, `"outbox email":"ok"`) {
		t.Errorf("readyz = %s, want the other outboxes to be well", said)
	}
	waitAnswer(t, base+"/healthz", http.StatusOK, "")
	write(t, db, "email", event.DeadLetters(event.GroupEmail), "of another outbox")
	if r := broker.Read(t, 1, event.DeadLetters(event.GroupEmail)); header(r[0], "ce_subject") != "of another outbox" {
		t.Errorf("published %v, want the message of the other outbox", r)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReady(t, base+"/readyz")
}

func TestRunRefusesToStartWhereKeysWouldMove(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	source := []Source{{Schema: "orders", DatabaseURL: db.RoleURL("orders_relay")}}
	for _, tc := range []struct {
		name       string
		topics     []string
		partitions int32
		want       error
	}{
		{"a topic is missing", []string{event.Orders}, event.Partitions, kafka.ErrMissingTopic},
		{"topics have another partition count", event.Topics(), event.Partitions + 1, kafka.ErrPartitionCount},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			broker := kafkatest.New(t)
			broker.Create(t, tc.partitions, nil, tc.topics...)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := Run(ctx, discard(), Config{Sources: source, Brokers: broker.Addrs, Wait: -1}); !errors.Is(err, tc.want) {
				t.Errorf("Run = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestRunNeedsAnOutbox(t *testing.T) {
	t.Parallel()
	if err := Run(t.Context(), discard(), Config{Brokers: []string{"127.0.0.1:1"}}); err == nil {
		t.Error("Run without sources = nil, want an error")
	}
}

func TestRunTakesTheKicksOfItsProcess(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	kick := make(chan struct{}) // unbuffered: a send that succeeds was taken
	running(t, discard(), Config{
		Brokers: kafkatest.New(t, event.Topics()...).Addrs,
		Sources: []Source{{Schema: "orders", DatabaseURL: db.RoleURL("orders_relay"), Kick: kick}},
	})
	for range 3 {
		select {
		case kick <- struct{}{}:
		case <-time.After(20 * time.Second):
			t.Fatal("a kick was not taken within 20 s")
		}
	}
}
