package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// relaying runs a relay from the outbox of orders until the test ends, or stop is called.
func relaying(t *testing.T, db *pgtest.DB, broker *outboxtest.Broker, name string) (stop func()) {
	t.Helper()
	relay, err := outbox.NewRelay(db.RolePool("orders_relay"), broker, outbox.RelayOptions{Name: name, Schema: "orders", Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil after its context ended", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// messagesOf commits one message of the key for each n, as the service orders does.
func messagesOf(t *testing.T, db *pgtest.DB, key string, ns ...int) (ids []uuid.UUID) {
	t.Helper()
	pool := db.RolePool("orders")
	for _, n := range ns {
		id := uuid.New()
		ids = append(ids, id)
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return outbox.Write(t.Context(), tx, outbox.Message{ID: id, Topic: "orders", Key: key, Type: "test.happened.v1", Payload: fmt.Append(nil, n)})
		}); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// arrived waits until the broker has n records, and returns what is in those of a key.
func arrived(t *testing.T, broker *outboxtest.Broker, n int, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := broker.Wait(ctx, func(records []outbox.Record) bool { return len(records) >= n }); err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, r := range broker.Records() {
		if r.Key == key {
			values = append(values, string(r.Value))
		}
	}
	return strings.Join(values, " ")
}

// outboxCommand runs `orderflow outbox` on a database.
func outboxCommand(t *testing.T, db *pgtest.DB, args ...string) result {
	t.Helper()
	return orderflow(t.Context(), append(append([]string{"outbox"}, args...), "--database-url", db.URL)...)
}

// documents reads what a command that must succeed prints with -o json.
func documents[T any](t *testing.T, db *pgtest.DB, args ...string) []T {
	t.Helper()
	got := outboxCommand(t, db, append(args, "-o", "json")...)
	var docs []T
	if err := json.Unmarshal([]byte(got.stdout), &docs); err != nil || got.code != exitOK {
		t.Fatalf("outbox %s = exit %d, %v: %s%s", strings.Join(args, " "), got.code, err, got.stdout, got.stderr)
	}
	return docs
}

func TestOutboxStatusShowsWhoLeadsAndWhatWaits(t *testing.T) {
	t.Parallel()
	db, broker := migrated.New(t), &outboxtest.Broker{}
	relaying(t, db, broker, "")
	messagesOf(t, db, "ada", 1)
	arrived(t, broker, 1, "ada")
	broker.SetDown(true)
	messagesOf(t, db, "ada", 2, 3)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	var doc outboxDoc
	waitUntil(t, "the first message is saved as published", func() bool {
		docs := documents[outboxDoc](t, db, "status", "--schema", "orders")
		doc = docs[0]
		return doc.Relays[0].Backlog == 2
	})
	r := doc.Relays[0]
	if r.Relay != "relay" || r.Leader == "" || r.Epoch != 1 || r.LeaseLeft <= 0 || r.Oldest <= 0 || r.BacklogIsMore || r.LastPublished == nil ||
		time.Since(*r.LastPublished) > time.Hour {
		t.Errorf("relay %+v, want one that leads under epoch 1 and has published", r)
	}
	if len(doc.Ring) != 8 || doc.RingHeadroom <= 0 || doc.OldestTransaction == nil || doc.OldestTransaction.State != "idle in transaction" {
		t.Errorf("outbox %+v, want 8 leaves, headroom and the open transaction", doc)
	}
	waiting := slices.IndexFunc(doc.Ring, func(l leafDoc) bool { return l.Bytes > 0 && cmp.Equal(l.WaitsFor, []string{"relay"}) })
	if waiting < 0 {
		t.Errorf("ring %+v, want a leaf that waits for the relay", doc.Ring)
	}
	if docs := documents[outboxDoc](t, db, "status"); len(docs) != 3 || docs[0].Relays[0].Leader != "" {
		t.Errorf("status of all = %+v, want three outboxes, and no leader for that of email", docs)
	}
	got := outboxCommand(t, db, "status")
	for _, part := range []string{"LAST PUBLISHED", r.Leader, "nobody", "oldest open transaction: ", "1 of 8"} {
		if !strings.Contains(got.stdout, part) {
			t.Errorf("status = exit %d, %s%s; want %q in it", got.code, got.stdout, got.stderr, part)
		}
	}
	if got := outboxCommand(t, db, "status", "--schema", "nowhere"); got.code != exitNotFound || !strings.Contains(got.stderr, "orders") {
		t.Errorf("status of no outbox = exit %d, %s; want 3 and those that there are", got.code, got.stderr)
	}
	if got := outboxCommand(t, pgtest.NewEmpty(t), "status"); got.code != exitFailure || !strings.Contains(got.stderr, "orderflow migrate") {
		t.Errorf("status of an empty database = exit %d, %s; want the way to migrate it", got.code, got.stderr)
	}
}

func TestOutboxStatusIsWatchedUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for _, format := range []string{"jsonl", "table"} {
		w := serveInBackground(t, "outbox", "status", "--watch", "--schema", "orders", "-o", format, "--database-url", db.URL)
		waitUntil(t, "it is shown a second time", func() bool { return strings.Count(w.out.String(), "orders") >= 3 })
		if code := w.interrupt(); code != exitOK {
			t.Errorf("exit %d after an interrupt, want 0: %s", code, w.out.String())
		}
	}
}

func TestParkedKeysOfAnOutboxAreListedReleasedAndDiscarded(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	var cured atomic.Bool
	broker := &outboxtest.Broker{Refuse: func(r outbox.Record) bool { return !cured.Load() && string(r.Value) == "13" }}
	relaying(t, db, broker, "")
	var ada []uuid.UUID
	for _, key := range []string{"ada", "bob", "cyd"} {
		ids := messagesOf(t, db, key, 12, 13, 14, 15)
		if key == "ada" {
			ada = ids
		}
	}
	var parked []parkedKeyDoc
	waitUntil(t, "three keys are parked with what is behind them", func() bool {
		parked = documents[parkedKeyDoc](t, db, "parked")
		return len(parked) == 3 && !slices.ContainsFunc(parked, func(d parkedKeyDoc) bool { return d.Behind != 2 })
	})
	if d := parked[0]; d.Schema != "orders" || d.Relay != "relay" || d.Topic != "orders" || d.Key != "ada" || d.MessageID != ada[1] ||
		d.Type != "test.happened.v1" || d.Attempts != 1 || !strings.Contains(d.Error, "refused") || d.ParkedAt.IsZero() {
		t.Errorf("parked %+v, want the refused message of ada", d)
	}
	if got := outboxCommand(t, db, "parked", "--topic", "other"); got.stdout != "nothing is parked\n" {
		t.Errorf("parked for another topic = %q, want nothing", got.stdout)
	}

	want := func(code int, stderr string, args ...string) {
		t.Helper()
		if got := outboxCommand(t, db, args...); got.code != code || !strings.Contains(got.stderr, stderr) {
			t.Errorf("outbox %s = exit %d, %s; want exit %d and %q", strings.Join(args, " "), got.code, got.stderr, code, stderr)
		}
	}
	want(exitNotFound, "outbox parked", "release", "nobody")
	want(exitNotFound, "outbox parked", "discard", uuid.NewString(), "--reason", "test")
	want(exitOK, "3 messages would be discarded; --yes", "discard", "bob", "--reason", "test")
	want(exitOK, "3 messages would be released; --yes", "release", "cyd")
	if n := len(documents[parkedKeyDoc](t, db, "parked")); n != 3 {
		t.Fatalf("%d keys are parked after plans, want 3", n)
	}

	// The refused message alone: those behind it go on.
	want(exitOK, "1 messages were discarded", "discard", ada[1].String(), "--reason", "sent by hand", "--yes")
	if got := arrived(t, broker, 5, "ada"); got != "12 14 15" {
		t.Errorf("published of ada %s, want all but the discarded one, in order", got)
	}
	want(exitOK, "3 messages were discarded", "discard", "bob", "--reason", "test", "--yes")
	cured.Store(true)
	want(exitOK, "3 messages were released", "release", "--all", "--yes")
	if got := arrived(t, broker, 8, "cyd"); got != "12 13 14 15" {
		t.Errorf("published of cyd %s, want all, in order", got)
	}
	if got := arrived(t, broker, 8, "bob"); got != "12" {
		t.Errorf("published of bob %s, want nothing that was discarded", got)
	}
	waitUntil(t, "nothing is parked any more", func() bool { return len(documents[parkedKeyDoc](t, db, "parked")) == 0 })
	var audit string
	if err := db.Pool.QueryRow(t.Context(), `
		SELECT string_agg(format('%s %s %s %s', action, key, message_id IS NOT NULL, reason), ', ' ORDER BY id)
		FROM orders.outbox_audit
		WHERE by = $1`, operator()).Scan(&audit); err != nil {
		t.Fatal(err)
	}
	wantAudit := "discard ada t sent by hand, discard bob t test, discard bob t test, discard bob t test, " +
		"release cyd t , release cyd t , release cyd t "
	if audit != wantAudit {
		t.Errorf("audit %q, want %q", audit, wantAudit)
	}
}

func TestOutboxReplayPlansAndPublishesAgain(t *testing.T) {
	t.Parallel()
	db, broker := migrated.New(t), &outboxtest.Broker{}
	relaying(t, db, broker, "")
	messagesOf(t, db, "ada", 1, 2)
	messagesOf(t, db, "bob", 1)
	arrived(t, broker, 3, "ada")
	waitUntil(t, "all is saved as published", func() bool {
		return documents[outboxDoc](t, db, "status", "--schema", "orders")[0].Relays[0].Backlog == 0
	})
	for _, args := range [][]string{
		{"--since", "1h"},
		{"--since", "1h", "--key", "ada", "--dry-run", "--yes"},
	} {
		got := outboxCommand(t, db, append([]string{"replay"}, args...)...)
		if got.code != exitOK || !strings.Contains(got.stderr, "messages would be published again; --yes") {
			t.Errorf("replay %v = exit %d, %s; want the plan only", args, got.code, got.stderr)
		}
	}
	docs := documents[replayDoc](t, db, "replay", "--since", time.Now().Add(-time.Hour).Format(time.RFC3339), "--key", "ada")
	if len(docs) != 3 || docs[1].Schema != "orders" || docs[1].Messages != 2 || docs[1].RingSince == nil || docs[1].Left || docs[0].Messages != 0 {
		t.Errorf("plan %+v, want 2 messages of orders, none of the others, and nothing that has left", docs)
	}
	got := outboxCommand(t, db, "replay", "--since", "1h", "--topic", "orders", "--key", "ada", "--yes", "--wait")
	if got.code != exitOK || !strings.Contains(got.stderr, "orders: 2 messages were published again") {
		t.Errorf("replay = exit %d, %s%s; want 2 messages published again", got.code, got.stdout, got.stderr)
	}
	if records := broker.Records(); len(records) != 5 || records[3].ID != records[0].ID || records[4].ID != records[1].ID {
		t.Errorf("records %v, want the two of ada again, with their ids", records)
	}
	if _, err := db.Pool.Exec(t.Context(), `DELETE FROM orders.outbox WHERE seq = 1`); err != nil {
		t.Fatal(err)
	}
	if got := outboxCommand(t, db, "replay", "--since", "1h"); !strings.Contains(got.stdout, "older messages have left the ring") {
		t.Errorf("replay = %s, want it to say that a message has left the ring", got.stdout)
	}
	if got := outboxCommand(t, db, "replay", "--since", "1h", "--relay", "nobody"); got.code != exitNotFound {
		t.Errorf("replay by nobody = exit %d, want %d", got.code, exitNotFound)
	}
	if got := outboxCommand(t, db, "replay", "--since", "1h", "--until", "30m", "--yes"); got.code != exitOK || strings.Contains(got.stderr, "again") {
		t.Errorf("replay of nothing = exit %d, %s; want 0 and nothing done", got.code, got.stderr)
	}
}

func TestOutboxDoctorExitsWith7WhenSomethingFails(t *testing.T) {
	t.Parallel()
	db, broker := migrated.New(t), &outboxtest.Broker{}
	stop := relaying(t, db, broker, "")
	waitUntil(t, "the relay leads", func() bool {
		return documents[outboxDoc](t, db, "status", "--schema", "orders")[0].Relays[0].Leader != ""
	})
	// As the migrations make it, nothing is to be said.
	for _, d := range documents[findingDoc](t, db, "doctor", "--schema", "orders") {
		if d.Level != outbox.OK || d.Schema != "orders" {
			t.Errorf("finding %+v, want ok", d)
		}
	}
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	got := outboxCommand(t, db, "doctor", "--schema", "orders", "--max-transaction", "1ns")
	if got.code != exitOK || !strings.Contains(got.stdout, "pg_terminate_backend(") {
		t.Errorf("doctor with a warning = exit %d, %s%s; want 0 and what to do", got.code, got.stdout, got.stderr)
	}
	stop()
	got = outboxCommand(t, db, "doctor", "--schema", "orders")
	if got.code != exitCheckFailed || !strings.Contains(got.stdout, "relay relay has no leader") || !strings.Contains(got.stderr, "1 of 13 findings") {
		t.Errorf("doctor without a leader = exit %d, %s%s; want 7 and the finding", got.code, got.stdout, got.stderr)
	}
	if got := outboxCommand(t, db, "doctor"); got.code != exitCheckFailed || !strings.Contains(got.stderr, "3 of 39 findings") {
		t.Errorf("doctor of all outboxes = exit %d, %s; want 7 and a failure in each", got.code, got.stderr)
	}
}

func TestARelayNameIsForgottenOnceNobodyUsesIt(t *testing.T) {
	t.Parallel()
	db, broker := migrated.New(t), &outboxtest.Broker{}
	stop := relaying(t, db, broker, "search")
	messagesOf(t, db, "ada", 1)
	arrived(t, broker, 1, "ada")
	want := func(code int, stderr string, args ...string) {
		t.Helper()
		if got := outboxCommand(t, db, append([]string{"forget"}, args...)...); got.code != code || !strings.Contains(got.stderr, stderr) {
			t.Errorf("forget %s = exit %d, %s; want exit %d and %q", strings.Join(args, " "), got.code, got.stderr, code, stderr)
		}
	}
	names := func() (names []string) {
		for _, r := range documents[outboxDoc](t, db, "status", "--schema", "orders")[0].Relays {
			names = append(names, r.Relay)
		}
		return names
	}
	want(exitConflict, "leads", "search", "--yes")
	stop()
	want(exitOK, "--yes does it", "search")
	if got := names(); !cmp.Equal(got, []string{"relay", "search"}) {
		t.Errorf("relays %v after a plan, want both", got)
	}
	want(exitOK, "forgotten in 1 outboxes", "search", "--yes")
	if got := names(); !cmp.Equal(got, []string{"relay"}) {
		t.Errorf("relays %v, want search to be forgotten", got)
	}
	want(exitNotFound, "outbox status", "search", "--yes")
}
