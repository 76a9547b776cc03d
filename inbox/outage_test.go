package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

const circuitOpened = "circuit open, consumer paused"

// patient are options with which what is parked waits for a person to hurry it, and the log to look at.
func (w *world) patient() (inbox.Options, *lines) {
	log := &lines{}
	opts := w.options()
	opts.RetryMin, opts.RetryMax = time.Hour, time.Hour
	opts.Log = slog.New(slog.NewTextHandler(log, nil))
	return opts, log
}

// F19: one message in twenty is poison, of both kinds, and nothing is done about it. That the others go on at their full rate
// no clock can tell on a machine that is shared; counted is what would make them slower: the consumer is never paused, all
// that it holds is the poison and what is behind it, and every message of every other key is done, also of the waves that come
// while the poison waits.
func TestSteadyPoisonLeavesHealthyKeysAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const keys, sequence, poisoned = 200, 5, 50 // a message each of the first keys
	opts, log := w.patient()
	opts.InlineAttempts = 1
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		switch what(m) {
		case "permanent":
			return inbox.Permanent(errors.New("not valid"))
		case "transient":
			return errors.New("provider says 500 to this one")
		}
		return apply(ctx, tx, m)
	}, opts)
	for seq := range sequence { // the load goes on while the poison waits
		records := make([]*kgo.Record, keys)
		for key := range records {
			kind := ""
			if key < poisoned && key%sequence == seq {
				kind = []string{"permanent", "transient"}[key/sequence%2]
			}
			records[key] = record(fmt.Sprintf("u%d", key), seq+1, kind)
		}
		w.produce(records...)
	}
	w.wait("all healthy keys and every fate", func() bool {
		return w.lag() == 0 && w.count(`SELECT count(DISTINCT key) FROM effects WHERE seq = $1`, sequence) == keys-poisoned
	})
	if n := w.count(`SELECT count(*) FROM parked_messages WHERE state <> 'waiting'`); n != poisoned {
		t.Errorf("%d messages held or dead, want %d", n, poisoned)
	}
	for key := range keys {
		want := sequence
		if key < poisoned {
			want = key % sequence
		}
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(want)...)
	}
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times, want never", n)
	}
}

// One message that fails again and again, where hardly anything else happens: it neither stops the others nor dies, for
// nobody can tell it from an outage.
func TestOnePoisonMessageInAQuietSystemDelaysNobodyAndDoesNotDie(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts, log := w.patient()
	opts.RetryMin, opts.RetryMax, opts.MaxTries = time.Millisecond, 5*time.Millisecond, 2
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" {
			return errors.New("fails whatever happens")
		}
		return apply(ctx, tx, m)
	}, opts)
	w.produce(record("poison", 1, "poison"))
	for n := range 10 {
		w.produce(record(fmt.Sprintf("u%d", n), 1, ""))
		w.wait("the next message, behind the poison", func() bool { return w.count(`SELECT count(*) FROM effects`) == n+1 })
	}
	w.wait("many more tries than kill where others succeed", func() bool {
		parked := w.parked(inbox.Filter{})
		return len(parked) == 1 && parked[0].Attempts > 10*opts.MaxTries
	})
	if parked := w.parked(inbox.Filter{}); parked[0].State != inbox.StateHeld {
		t.Errorf("the poison message is %s, want it held", parked[0].State)
	}
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times, want never", n)
	}
}

// Every second call fails, as behind a sick load balancer, until each message has had its share of it.
func TestHalfOfAllCallsFailingKillsNoMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.options()
	opts.RetryMin, opts.RetryMax = time.Millisecond, 20*time.Millisecond
	var calls, failed atomic.Int64
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		calls.Add(1)
		if m.Attempt <= 8 && m.ID[15]>>(m.Attempt-1)&1 == 1 { // the id's last bits are random
			failed.Add(1)
			return errors.New("connection reset by peer")
		}
		return apply(ctx, tx, m)
	}, opts)
	const keys, sequence = 100, 4
	for seq := range sequence {
		records := make([]*kgo.Record, keys)
		for key := range records {
			records[key] = record(fmt.Sprintf("u%d", key), seq+1, "")
		}
		w.produce(records...)
	}
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) >= keys*sequence && w.lag() == 0 })
	for key := range keys {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(sequence)...)
	}
	w.wantNobodyDead()
	if share := 100 * failed.Load() / calls.Load(); share < 25 {
		t.Errorf("%d %% of the calls failed, want about half", share)
	}
}

func (w *world) wantNobodyDead() {
	w.Helper()
	if n := w.count(`SELECT count(*) FROM outbox`); n != 0 {
		w.Errorf("%d dead letters, want 0%s", n, w.describeParked())
	}
}

// A deploy that cannot read one of two types, and says so of every message.
func TestADeployThatFailsOneTypeStopsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const cancelled, messages = "order.cancelled.v1", 80
	var broken atomic.Bool
	broken.Store(true)
	opts, log := w.patient()
	routes := []inbox.Route{
		{Topic: topic, Type: placed, Handle: apply},
		{Topic: topic, Type: cancelled, Handle: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
			if broken.Load() {
				return inbox.Permanent(errors.New("cannot decode"))
			}
			return apply(ctx, tx, m)
		}},
	}
	stop := w.startRoutes(routes, opts)
	var records []*kgo.Record
	for n := range messages {
		records = append(records, record(fmt.Sprintf("placed%d", n), 1, ""),
			withHeaders(record(fmt.Sprintf("cancelled%d", n), 1, ""), uuid.Must(uuid.NewV7()), cancelled))
	}
	w.produce(records...)
	w.wait("the other type, and every fate", func() bool { return w.count(`SELECT count(*) FROM effects`) == messages && w.lag() == 0 })
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times, want never", n)
	}
	dead := w.count(`SELECT count(*) FROM parked_messages WHERE state = 'dead'`)
	if dead > 20 {
		t.Errorf("%d of %d dead, want at most those that came before it showed", dead, messages)
	}

	stop() // and the same program again, which knows nothing of the last one's failures
	w.startRoutes(routes, opts)
	retry := func() {
		if n, err := inbox.Retry(t.Context(), w.db.Pool, inbox.Filter{Type: cancelled}); n == 0 || err != nil {
			t.Fatalf("Retry() = %d, %v, want the held keys", n, err)
		}
	}
	retry()
	w.wait("another try of what is held", func() bool {
		return w.count(`SELECT count(*) FROM parked_messages WHERE state = 'held' AND attempts = 1`) == 0
	})
	if again := w.count(`SELECT count(*) FROM parked_messages WHERE state = 'dead'`) - dead; again > 30 {
		t.Errorf("%d of %d held ones are dead, want at most those that were tried before it showed", again, messages-dead)
	}

	broken.Store(false)
	if _, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); err != nil {
		t.Fatal(err)
	}
	retry()
	w.wait("everything", func() bool { return w.count(`SELECT count(*) FROM effects`) == 2*messages })
}

// careless is [apply] by somebody who takes every error for the message's.
func careless(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if err := apply(ctx, tx, m); err != nil {
		return inbox.Permanent(err)
	}
	return nil
}

// F20: the server itself goes away under load, twice, and its data comes back. A minute of it would show nothing more than the
// moment does, and neither would a rate of messages; counted are the waves before, in and behind each outage, of which each
// message must be done once and in order, the pauses, of which each outage makes one, and what is parked or dead: nothing.
func TestPostgresDownUnderLoadMakesNoDeadLetters(t *testing.T) {
	t.Parallel()
	w, server := newServerWorld(t)
	opts, log := w.patient()
	c := w.consumer(onlyPlaced(careless), opts)
	w.run(c)
	const keys = 40
	wave := 0
	produce := func() {
		records := make([]*kgo.Record, keys)
		for key := range records {
			records[key] = record(fmt.Sprintf("u%d", key), wave+1, "")
		}
		wave++
		w.produce(records...)
	}
	for outage := 1; outage <= 2; outage++ {
		w.wait("a member", func() bool { return c.Ready() == nil })
		produce()
		server.stop(t) // in the middle of it
		produce()
		w.wait("a pause", func() bool { return log.containing(circuitOpened) >= outage })
		server.start(t)
		produce()
		w.db.Pool.Reset()
		w.wait("what was sent meanwhile", func() bool { return c.Ready() == nil && w.count(`SELECT count(*) FROM effects`) >= keys*wave })
	}
	for key := range keys {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(wave)...)
	}
	w.wantNobodyDead()
	if n := len(w.parked(inbox.Filter{})); n != 0 {
		t.Errorf("%d messages parked, want none%s", n, w.describeParked())
	}
}

// Postgres ends while a handler of a held message is at work, and is back when the handler says that the message is to blame:
// there is a new connection on which that could be booked.
func TestNoHeldMessageIsBlamedForARestartOfPostgres(t *testing.T) {
	t.Parallel()
	w, server := newServerWorld(t)
	entered, restarted := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(entered) })
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		enter()
		<-restarted
		return careless(ctx, tx, m)
	}), w.options())
	w.produce(record("u1", 1, "park"))
	w.wait("held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1 })
	w.due("u1")
	<-entered
	server.stop(t)
	server.start(t)
	w.db.Pool.Reset()
	close(restarted)
	w.wait("its fate", func() bool { return len(w.effects("u1")) == 1 || w.count(`SELECT count(*) FROM outbox`) > 0 })
	w.wantNobodyDead()
}

// newServerWorld is a world whose Postgres a test may stop.
func newServerWorld(t *testing.T) (*world, *ownServer) {
	t.Helper()
	server := newServer(t)
	pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := migrate(t.Context(), server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	broker := kafkatest.New(t, topics()...)
	client := broker.Client(t)
	return &world{T: t, db: &pgtest.DB{URL: server.URL("postgres"), Pool: pool}, broker: broker, client: client, adm: kadm.NewClient(client)}, server
}

// ownServer is a Postgres that a test may stop.
type ownServer struct {
	*localpg.Server
	opts localpg.Options
}

func newServer(t *testing.T) *ownServer {
	t.Helper()
	// Package pgtest sweeps the folder up by its name when this test could not.
	dir, err := os.MkdirTemp(localpg.Scratch(), "orderflow-pgtest-inbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // the server may run as another user
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	s := &ownServer{opts: localpg.Options{
		DataDir: filepath.Join(dir, "postgres"), NoFsync: true, Auth: "md5",
		InitCache: filepath.Join(cache, "orderflow", "pgtest"), Parameters: map[string]string{"shared_buffers": "16MB"},
	}}
	s.start(t)
	t.Cleanup(func() { s.stop(t) })
	return s
}

func (s *ownServer) start(t *testing.T) {
	t.Helper()
	var err error
	if s.Server, err = localpg.Start(t.Context(), s.opts); err != nil {
		t.Fatal(err)
	}
	s.opts.Port = s.Port()
}

// stop ends the server and whoever is connected.
func (s *ownServer) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}
