package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// sell is a batch handler as it should be: rows of its own keys first, shared rows sorted and last.
func sell(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
	sold := map[string]int{}
	for _, m := range msgs {
		if what(m) == "poison" {
			return inbox.PermanentAs("business_invalid", errors.New("no such product"))
		}
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
		sold["sku-"+what(m)]++
	}
	skus := make([]string, 0, len(sold))
	for sku := range sold {
		skus = append(skus, sku)
	}
	slices.Sort(skus)
	for _, sku := range skus {
		_, err := tx.Exec(ctx, `INSERT INTO shared VALUES ($1, $2) ON CONFLICT (sku) DO UPDATE SET sold = shared.sold + excluded.sold`, sku, sold[sku])
		if err != nil {
			return err
		}
	}
	return nil
}

func TestBatchHandlerBlamesOnlyTheMessageThatFailsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var records []*kgo.Record
	for seq := range 5 {
		for key := range 30 {
			product := fmt.Sprint(key % 3)
			if seq == 2 && key%10 == 0 {
				product = "poison"
			}
			records = append(records, record(fmt.Sprintf("u%d", key), seq+1, product))
		}
	}
	w.produce(records...)
	w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, HandleBatch: sell}}, w.options())
	w.wait("every fate", func() bool { return w.lag() == 0 })
	for key := range 30 {
		want := seqs(5)
		if key%10 == 0 {
			want = seqs(2)
		}
		w.wantEffects(fmt.Sprintf("u%d", key), want...)
	}
	if n := w.count(`SELECT sum(sold) FROM shared`); n != 27*5+3*2 {
		t.Errorf("%d sold, want %d", n, 27*5+3*2)
	}
	if dead := w.parked(inbox.Filter{State: inbox.StateDead}); len(dead) != 3 {
		t.Errorf("%d dead, want 3%s", len(dead), w.describeParked())
	}
}

func TestDeadlockedBatchesShrinkAndNobodyIsBlamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var records []*kgo.Record
	for key := range 50 {
		records = append(records, record(fmt.Sprintf("u%d", key), 1, ""))
	}
	w.produce(records...)
	w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, HandleBatch: func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
		if len(msgs) > 1 {
			return fmt.Errorf("update stock: %w", &pgconn.PgError{Code: "40P01"})
		}
		return apply(ctx, tx, msgs[0])
	}}}, w.options())
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 50 })
	if parked := w.parked(inbox.Filter{}); len(parked) != 0 {
		t.Errorf("parked: %s", w.describeParked())
	}
}

func TestASerializationFailureIsNoAttempt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var calls atomic.Int32
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Attempt != 1 {
			return inbox.Permanent(fmt.Errorf("attempt %d, want 1", m.Attempt))
		}
		if calls.Add(1) <= 8 {
			return fmt.Errorf("update stock: %w", &pgconn.PgError{Code: "40001"})
		}
		return apply(ctx, tx, m)
	}, w.options())
	w.produce(record("u1", 1, ""))
	w.wait("a fate", func() bool { return w.lag() == 0 })
	w.wantEffects("u1", 1)
}

func TestReleaseKeyLetsLaterMessagesPassADeadOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var fixed atomic.Bool
	w.startRoutes([]inbox.Route{{Topic: topic, Type: placed, Policy: inbox.ReleaseKey, Handle: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" && !fixed.Load() {
			return inbox.Permanent(errors.New("address refused"))
		}
		return apply(ctx, tx, m)
	}}}, w.options())
	w.produce(record("u1", 1, ""), record("u1", 2, "poison"), record("u1", 3, ""))
	w.wait("the message behind the dead one", func() bool { return len(w.effects("u1")) == 2 })
	w.wantEffects("u1", 1, 3)
	w.produce(record("u1", 4, ""))
	w.wait("a message that comes later", func() bool { return len(w.effects("u1")) == 3 })
	fixed.Store(true)
	if n, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{Group: "test"}, "alice"); n != 1 || err != nil {
		t.Fatalf("Replay() = %d, %v, want 1", n, err)
	}
	w.wait("the replayed message", func() bool { return len(w.effects("u1")) == 4 })
	w.wait("no holds", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
}

func TestFailureAtCommitIsBlamedOnItsMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.db.Pool.Exec(t.Context(), `ALTER TABLE effects ADD UNIQUE (seq) DEFERRABLE INITIALLY DEFERRED`); err != nil {
		t.Fatal(err)
	}
	w.produce(record("u1", 1, ""), record("u2", 2, ""), record("u3", 1, ""), record("u4", 4, ""))
	opts := w.options()
	opts.RetryMin, opts.RetryMax = time.Minute, time.Minute
	w.start(apply, opts)
	w.wait("three effects and one held", func() bool {
		return w.count(`SELECT count(*) FROM effects`) == 3 && len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1
	})
}

func TestOnlyTheContiguousFinishedPrefixIsCommitted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := make(chan struct{})
	opts := w.options()
	opts.BatchSize = 1 // the slow message shares its transaction with nobody
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "slow" {
			<-release
		}
		return apply(ctx, tx, m)
	}, opts)
	client := w.broker.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	records := []*kgo.Record{record("a", 1, ""), record("slow", 1, "slow")}
	for key := range 20 {
		records = append(records, record(fmt.Sprintf("u%d", key), 1, ""))
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.wait("the others", func() bool { return w.count(`SELECT count(*) FROM effects`) == 21 })
	w.wait("the commit of the first", func() bool { return w.committed(0) == 1 })
	close(release)
	w.wait("the commit of all", func() bool { return w.committed(0) == 22 })
}

func (w *world) committed(partition int32) int64 {
	offsets, err := w.adm.FetchOffsets(w.Context(), "test")
	if err != nil {
		return -1 // the group does not exist yet
	}
	at, _ := offsets.Lookup(topic, partition)
	return at.At
}

// F4
func TestShutdownFinishesAndCommitsWhatIsStarted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	stop := w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		close(entered)
		<-release
		return apply(ctx, tx, m)
	}, w.options())
	w.produce(record("u1", 1, ""))
	<-entered
	time.AfterFunc(20*time.Millisecond, func() { close(release) }) // while Run is on its way out
	stop()
	w.wantEffects("u1", 1)
	if lag := w.lag(); lag != 0 {
		t.Errorf("lag = %d after the shutdown, want 0", lag)
	}
}

func TestASlowHandlerIsCancelledWhenTheDrainTimeoutPasses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered := make(chan struct{})
	opts := w.options()
	opts.DrainTimeout = 10 * time.Millisecond
	stop := w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}, opts)
	w.produce(record("u1", 1, ""))
	<-entered
	stop()
	if parked := w.parked(inbox.Filter{}); len(parked) != 0 {
		t.Errorf("parked: %s", w.describeParked())
	}
}

func TestOnlyTheFurthestDayIsReclaimed(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	_, err := db.Pool.Exec(t.Context(), `
		INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
		SELECT slot, 'test', gen_random_uuid(), '', 'done' FROM generate_series(0, 31) AS slot`)
	if err != nil {
		t.Fatal(err)
	}
	var reclaimed bool
	if err := db.Pool.QueryRow(t.Context(), `SELECT inbox_reclaim()`).Scan(&reclaimed); err != nil || !reclaimed {
		t.Fatalf("inbox_reclaim() = %v, %v, want true", reclaimed, err)
	}
	rows, _ := db.Pool.Query(t.Context(), `
		SELECT d::int FROM generate_series(-29, 1) AS d
		WHERE NOT EXISTS (
			SELECT FROM processed_messages
			WHERE slot = (floor(extract(epoch FROM now()) / 86400)::bigint + d + 32) % 32)`) // CollectRows reports the error
	lost, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(lost) != 0 {
		t.Fatalf("days reclaimed, from today: %v, %v, want none that a consumer still accepts", lost, err)
	}
	if err := db.Pool.QueryRow(t.Context(), `SELECT inbox_reclaim()`).Scan(&reclaimed); err != nil || reclaimed {
		t.Errorf("second inbox_reclaim() = %v, %v, want false", reclaimed, err)
	}
}

func TestConsumerWorksWithoutPreparedStatementsAndWithASchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, err := pgxpool.ParseConfig(w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // as behind PgBouncer
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	opts := w.options()
	opts.Schema = "public"
	var fixed atomic.Bool
	c, err := inbox.NewConsumer(pool, "test", onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "poison" && !fixed.Load() {
			return inbox.Permanent(errors.New("no"))
		}
		return apply(ctx, tx, m)
	}), opts)
	if err != nil {
		t.Fatal(err)
	}
	stop := w.run(c)
	defer stop() // before the pool is closed
	w.produce(record("u1", 1, ""), record("u1", 2, "poison"), record("u1", 3, ""), drop(record("u2", 1, ""), "ce_id"))
	w.wait("three parked", func() bool { return len(w.parked(inbox.Filter{})) == 3 })
	fixed.Store(true)
	if _, err := inbox.Replay(t.Context(), pool, inbox.Filter{Key: "u1"}, "alice"); err != nil {
		t.Fatal(err)
	}
	w.wait("all effects", func() bool { return len(w.effects("u1")) == 3 })
}

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func (l *lines) containing(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.all {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

func TestTheLogSaysWhyNothingMovesAndHoldsNoKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log lines
	opts := w.options()
	opts.StallAfter = 50 * time.Millisecond
	opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	release := make(chan struct{})
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "secret-poison" {
			return inbox.Permanent(errors.New("no"))
		}
		<-release
		return apply(ctx, tx, m)
	}, opts)
	w.produce(record("secret-user", 1, ""))
	w.wait("the reason", func() bool { return log.containing("is in the handler of order.placed.v1 for") > 0 })
	close(release)
	w.produce(record("secret-user", 2, "secret-poison"))
	w.wait("the dead letter", func() bool { return log.containing("message is dead") == 1 })
	if n := log.containing("secret"); n != 0 {
		t.Errorf("%d lines of the log hold a key or a payload, want 0", n)
	}
}
