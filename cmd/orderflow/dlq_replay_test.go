package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// shop is a database and a broker with the warehouse service at work on them.
type shop struct {
	*testing.T
	db     *pgtest.DB
	broker *kafkatest.Broker
	client *kgo.Client
}

func newShop(t *testing.T) *shop {
	t.Helper()
	broker := kafkatest.New(t, event.Topics()...)
	s := &shop{T: t, db: migrated.New(t), broker: broker, client: broker.Client(t)}
	ops := unused(t)
	wantReady(t, s.serve("warehouse", "--database-url", s.db.RoleURL("warehouse"), "--ops-addr", ops), "http://"+ops+"/readyz")
	return s
}

func (s *shop) serve(args ...string) *serving {
	s.Helper()
	return serveInBackground(s.T, append(args, "--kafka", strings.Join(s.broker.Addrs, ","), "--dev")...)
}

// dlq runs `orderflow dlq` on the shop's database.
func (s *shop) dlq(args ...string) result { return s.dlqUntil(s.Context(), args...) }

func (s *shop) dlqUntil(ctx context.Context, args ...string) result {
	return orderflow(ctx, append(append([]string{"dlq"}, args...), "--database-url", s.db.URL)...)
}

// count returns the result of a query for one number.
func (s *shop) count(query string, args ...any) int {
	s.Helper()
	var n int
	if err := s.db.Pool.QueryRow(s.Context(), query, args...).Scan(&n); err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	return n
}

// completed is the payload of an order.completed.v1 of a user.
func completed(t *testing.T, user string, order uuid.UUID) []byte {
	t.Helper()
	payload, err := json.Marshal(event.OrderCompleted{
		OrderID: order, UserID: user, UserSeq: 1, Currency: "EUR", Total: 100, Email: user + "@example.com",
		Items: []event.Item{{SKU: "mug", Name: "Mug", Quantity: 1, UnitPrice: 100}}, CompletedAt: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// publish sends messages of a user in order, as a relay would, and returns their records.
func (s *shop) publish(user string, payloads ...[]byte) []*kgo.Record {
	s.Helper()
	var records []*kgo.Record
	for _, payload := range payloads {
		records = append(records, &kgo.Record{Topic: event.OrdersCompleted, Key: []byte(user), Value: payload, Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")},
			{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())},
			{Key: "ce_type", Value: []byte(event.OrderCompletedV1)},
			{Key: "ce_source", Value: []byte("/test")},
			{Key: "content-type", Value: []byte("application/json")},
			{Key: "x-tenant", Value: []byte("shop")},
		}})
	}
	if err := s.client.ProduceSync(s.Context(), records...).FirstErr(); err != nil {
		s.Fatal(err)
	}
	return records
}

func (s *shop) waitForDead(n int) {
	s.Helper()
	waitUntil(s.T, fmt.Sprintf("%d dead letters", n), func() bool {
		return s.count(`SELECT count(*) FROM warehouse.parked_messages WHERE state = 'dead'`) == n
	})
}

func TestAReplayStopsAtItsCanaryAndGoesOnOnceTheCauseIsMended(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const many = 14
	for i := range many {
		s.publish(fmt.Sprintf("u%d", i), []byte("{"), completed(t, fmt.Sprintf("u%d", i), uuid.Must(uuid.NewV7())))
	}
	s.waitForDead(many)
	waitUntil(t, "the others behind them", func() bool { return s.count(`SELECT count(*) FROM warehouse.parked_messages`) == 2*many })

	plan := s.dlq("replay", "--group", "warehouse", "--yes", "--dry-run")
	if plan.code != 0 || !strings.Contains(plan.stderr, "warehouse: 14 to run, 0 already processed and to be dropped, 14 waiting behind them") {
		t.Errorf("replay --dry-run = exit %d, %s; want a forecast", plan.code, plan.stderr)
	}
	if n := s.count(`SELECT count(*) FROM warehouse.inbox_audit`); n != 0 {
		t.Errorf("%d messages were replayed by --dry-run --yes, want none", n)
	}

	got := s.dlq("replay", "--all", "--yes")
	if got.code != exitPartial || !strings.Contains(got.stderr, "of 14 messages 1 handed back, 0 handled, 1 failed again") || !strings.Contains(got.stderr, "undecodable") {
		t.Errorf("replay of poison = exit %d, %s; want %d after one canary", got.code, got.stderr, exitPartial)
	}
	if n := s.count(`SELECT count(*) FROM warehouse.inbox_audit`); n != 1 {
		t.Errorf("%d messages were handed back, want the canary alone", n)
	}
	got = s.dlq("replay", "--all", "--yes", "--canary=false", "--stop-after", "3", "--rate", "1000")
	if got.code != exitPartial || !strings.Contains(got.stderr, "failed again") {
		t.Errorf("replay --stop-after 3 = exit %d, %s; want %d", got.code, got.stderr, exitPartial)
	}
	s.waitForDead(many)

	for i := range many {
		user := fmt.Sprintf("u%d", i)
		if _, err := s.db.Pool.Exec(t.Context(), `UPDATE warehouse.parked_messages SET payload = $2 WHERE key = $1 AND state = 'dead'`,
			user, completed(t, user, uuid.Must(uuid.NewV7()))); err != nil {
			t.Fatal(err)
		}
	}
	got = s.dlq("replay", "--all", "--yes", "--rate", "1000")
	if got.code != 0 || !strings.Contains(got.stderr, "of 14 messages 14 handed back, 14 handled, 0 failed again") ||
		!strings.Contains(got.stderr, "a canary of 1 is through") || !strings.Contains(got.stderr, "a canary of 10 is through") {
		t.Errorf("replay of mended messages = exit %d, %s; want all 14 handled after two canaries", got.code, got.stderr)
	}
	waitUntil(t, "what waited behind them", func() bool { return s.count(`SELECT count(*) FROM warehouse.parked_messages`) == 0 })
	if n := s.count(`SELECT count(*) FROM warehouse.shipments`); n != 2*many {
		t.Errorf("%d shipments, want %d", n, 2*many)
	}
}

// One cause may be mended and another not: what fails in one group says nothing about the next one's canary.
func TestAFailureInOneGroupStopsNoOtherGroupsCanary(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const many = handful + 1
	for i := range many {
		s.publish(fmt.Sprintf("u%d", i), []byte("{"))
	}
	s.waitForDead(many)
	for i := range many {
		user := fmt.Sprintf("u%d", i)
		if _, err := s.db.Pool.Exec(t.Context(), `UPDATE warehouse.parked_messages SET payload = $2 WHERE key = $1`,
			user, completed(t, user, uuid.Must(uuid.NewV7()))); err != nil {
			t.Fatal(err)
		}
	}
	park(t, s.db, "email", "u1", []byte("{"), `[]`)
	nothing := func(context.Context, pgx.Tx, inbox.Message) error { return nil }
	email, err := inbox.NewConsumer(s.db.Pool, "email", []inbox.Route{{Topic: "orders", Type: "any.v1", Handle: nothing}}, inbox.Options{
		Schema: "email", Kafka: []kgo.Opt{kgo.SeedBrokers(s.broker.Addrs...)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- email.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})

	got := s.dlq("replay", "--all", "--yes", "--wait")
	if got.code != exitPartial || !strings.Contains(got.stderr, "of 7 messages 7 handed back, 6 handled, 1 failed again") {
		t.Errorf("replay of two groups = exit %d, %s; want %d, all of warehouse handled after the failure in email", got.code, got.stderr, exitPartial)
	}
}

func TestAMessageBehindADeadOneIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.publish("ada", []byte("{"), completed(t, "ada", uuid.Must(uuid.NewV7())))
	waitUntil(t, "both parked", func() bool { return s.count(`SELECT count(*) FROM warehouse.parked_messages`) == 2 })
	if _, err := s.db.Pool.Exec(t.Context(), `UPDATE warehouse.parked_messages SET state = 'dead'`); err != nil { // as after an import
		t.Fatal(err)
	}
	got := s.dlq("replay", "--key", "ada", "--wait", "--yes")
	if got.code != exitPartial || !strings.Contains(got.stderr, "2 handed back, 0 handled, 1 failed again, 1 behind a dead message") {
		t.Errorf("replay = exit %d, %s; want %d, the second behind the first", got.code, got.stderr, exitPartial)
	}
}

func TestAnInterruptedReplaySaysHowToGoOn(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for i := range 8 { // and no consumer runs
		park(t, db, "warehouse", fmt.Sprintf("u%d", i), []byte("{"), `[]`)
	}
	inState := func(state string) (n int) {
		if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM warehouse.parked_messages WHERE state = $1`, state).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, how := range [][]string{{"--canary=false", "--rate", "0.001"}, nil} { // between two messages, and while the canary is waited for
		ctx, interrupt := context.WithCancel(t.Context())
		ended := make(chan result)
		go func() {
			ended <- orderflow(ctx, append([]string{"dlq", "replay", "--all", "--yes", "--database-url", db.URL}, how...)...)
		}()
		waitUntil(t, "one more is handed back", func() bool { return inState("held") == i+1 })
		interrupt()
		if got := <-ended; got.code != exitInterrupted || !strings.Contains(got.stderr, "handed back") || !strings.Contains(got.stderr, "the same command goes on") {
			t.Errorf("an interrupted replay %v = exit %d, %s; want %d and how to go on", how, got.code, got.stderr, exitInterrupted)
		}
		if n := inState("dead"); n != 7-i {
			t.Errorf("%d dead letters after the interrupt, want the other %d", n, 7-i)
		}
	}

	if got := orderflow(t.Context(), "dlq", "replay", "--all", "--yes", "--timeout", "1ms", "--database-url", db.URL); got.code != exitTimeout || !strings.Contains(got.stderr, "group warehouse has not tried 1 of them") {
		t.Errorf("a replay to nobody = exit %d, %s; want %d", got.code, got.stderr, exitTimeout)
	}
	if got := orderflow(t.Context(), "dlq", "replay", "--all", "--yes", "--canary=false", "--database-url", db.URL); got.code != 0 || !strings.Contains(got.stderr, "5 messages were handed back") {
		t.Errorf("the rest = exit %d, %s; want 5 handed back", got.code, got.stderr)
	}
}

func TestProgressIsABarOnATerminalAndLinesElsewhere(t *testing.T) {
	t.Parallel()
	var term, file bytes.Buffer
	onTerminal, elsewhere := &progress{w: &term, terminal: true}, &progress{w: &file}
	for _, p := range []*progress{onTerminal, elsewhere} {
		p.at(1, 2, "half")
		p.at(2, 2, "whole")
		p.say("through")
		p.end()
	}
	const half = "\r[###############               ] 1/2  half\x1b[K"
	const whole = "\r[##############################] 2/2  whole\x1b[K\nthrough\n"
	if got := term.String(); got != half+whole {
		t.Errorf("on a terminal %q, want %q", got, half+whole)
	}
	if got, want := file.String(), "1/2  half\nthrough\n"; got != want {
		t.Errorf("elsewhere %q, want %q: one line, then none for 5 s", got, want)
	}
}
