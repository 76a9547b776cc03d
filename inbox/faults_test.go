package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/inbox"
)

var onlyPlaced = func(h inbox.Handler) []inbox.Route { return []inbox.Route{{Topic: topic, Type: placed, Handle: h}} }

// seqs returns 1 to n.
func seqs(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

// F21
func TestDuplicatesStormInTwoConsumersHasOneEffectEach(t *testing.T) {
	t.Parallel()
	onEachTable(t, testDuplicatesStormInTwoConsumersHasOneEffectEach)
}

func testDuplicatesStormInTwoConsumersHasOneEffectEach(w *world) {
	var records []*kgo.Record
	for seq := range 10 {
		for key := range 20 {
			rec := record(fmt.Sprintf("u%d", key), seq+1, "")
			records = append(records, rec)
			for range 9 { // again, anywhere behind what came first
				copied := *rec
				records = append(records, &copied)
			}
			from := max(0, len(records)-200)
			tail := records[from:]
			last := len(tail) - 9
			for i := last; i < len(tail); i++ {
				j := last + rand.IntN(len(tail)-last)
				tail[i], tail[j] = tail[j], tail[i]
			}
		}
	}
	w.start(apply, w.options())
	w.start(apply, w.options())
	overlapping := w.consumer(onlyPlaced(apply), w.options())
	overlapping.Overlap("zombie")
	w.run(overlapping)
	w.produce(records...)
	w.wait("no lag", func() bool { return w.lag() == 0 && w.count(`SELECT count(*) FROM effects`) >= 200 })
	for key := range 20 {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(10)...)
	}
}

// F16
func TestCrashBetweenCommitAndOffsetCommitHasOneEffect(t *testing.T) {
	t.Parallel()
	w, cluster := newFaultyWorld(t)
	var refused atomic.Int32
	crashed := make(chan struct{})
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		select {
		case <-crashed:
			return nil, nil, false
		default:
			cluster.KeepControl()
			refused.Add(1)
			return nil, errors.New("connection lost"), true
		}
	})
	for i := range 20 {
		w.produce(record("u1", i+1, ""))
	}
	opts := w.options()
	opts.Kafka = append(opts.Kafka, kgo.RequestRetries(0))
	stop := w.start(apply, opts)
	w.wait("all effects", func() bool { return len(w.effects("u1")) == 20 && refused.Load() > 0 })
	stop()
	close(crashed)
	if lag := w.lag(); lag != 20 {
		t.Fatalf("lag = %d after the crash, want 20: nothing was committed", lag)
	}
	w.start(apply, w.options())
	w.wait("no lag", func() bool { return w.lag() == 0 })
	w.wantEffects("u1", seqs(20)...)
}

// F18
func TestRebalanceInTheMiddleOfABatchLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}, 1000), make(chan struct{})
	slow := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
		entered <- struct{}{}
		<-release
		return nil
	}
	w.start(slow, w.options())
	var records []*kgo.Record
	for seq := range 5 {
		for key := range 40 {
			records = append(records, record(fmt.Sprintf("u%d", key), seq+1, ""))
		}
	}
	w.produce(records...)
	<-entered // the first consumer is in the middle of a batch
	second := w.consumer(onlyPlaced(apply), w.options())
	w.run(second)
	w.wait("a rebalance", func() bool { return w.groupState() == "PreparingRebalance" || second.Ready() == nil })
	close(release)
	w.wait("the second consumer", func() bool { return second.Ready() == nil })
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) >= 200 && w.lag() == 0 })
	for key := range 40 {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(5)...)
	}
}

func (w *world) groupState() string {
	groups, err := w.adm.DescribeGroups(w.Context(), "test")
	if err != nil {
		w.Fatal(err)
	}
	return groups["test"].State
}

// F17
func TestLostPartitionsAreLetGoWithoutACommit(t *testing.T) {
	t.Parallel()
	w, cluster := newFaultyWorld(t)
	cancelled := make(chan error, 1000)
	var first atomic.Bool
	first.Store(true)
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
		if !first.CompareAndSwap(true, false) {
			return nil
		}
		// The group forgets this member while the handler runs.
		cluster.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
			resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
			resp.ErrorCode = kerr.UnknownMemberID.Code
			return resp, nil, true
		})
		select {
		case <-ctx.Done():
			cancelled <- ctx.Err()
			return ctx.Err()
		case <-time.After(time.Minute):
			cancelled <- nil
			return errors.New("not cancelled")
		}
	}
	opts := w.options()
	opts.Kafka = append(opts.Kafka, kgo.HeartbeatInterval(50*time.Millisecond))
	w.start(handle, opts)
	w.produce(record("u1", 1, ""), record("u1", 2, ""))
	if err := <-cancelled; err == nil {
		t.Fatal("the batch of lost partitions went on")
	}
	w.wait("both effects", func() bool { return len(w.effects("u1")) >= 2 && w.lag() == 0 })
	w.wantEffects("u1", 1, 2)
}

func TestAMemberThatTheGroupForgotIsNotReadyUntilItIsBack(t *testing.T) {
	t.Parallel()
	w, cluster := newFaultyWorld(t)
	opts := w.options()
	opts.Kafka = append(opts.Kafka, kgo.HeartbeatInterval(50*time.Millisecond))
	c := w.consumer(onlyPlaced(apply), opts)
	w.run(c)
	w.wait("a member", func() bool { return c.Ready() == nil })
	var back atomic.Bool
	cluster.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if back.Load() {
			return nil, nil, false
		}
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
		resp.ErrorCode = kerr.CoordinatorLoadInProgress.Code
		return resp, nil, true
	})
	cluster.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp, nil, true
	})
	w.wait("not ready", func() bool { return c.Ready() != nil })
	back.Store(true)
	w.wait("ready again", func() bool { return c.Ready() == nil })
}

// F20
func TestKilledDatabaseConnectionsMakeNoDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(careless, w.options())
	killer, err := pgxpool.New(t.Context(), w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer killer.Close()
	for round := range 30 {
		records := make([]*kgo.Record, 20)
		for key := range records {
			records[key] = record(fmt.Sprintf("u%d", key), round+1, "")
		}
		w.produce(records...)
		_, err = killer.Exec(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		if err != nil {
			t.Fatal(err)
		}
	}
	w.db.Pool.Reset() // a connection that was terminated would show it to whoever uses it next: here, the test
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) >= 600 && w.lag() == 0 })
	for key := range 20 {
		w.wantEffects(fmt.Sprintf("u%d", key), seqs(30)...)
	}
	if n := w.count(`SELECT count(*) FROM outbox`) + len(w.parked(inbox.Filter{})); n != 0 {
		t.Errorf("%d messages parked or dead, want none%s", n, w.describeParked())
	}
}

func TestAConnectionThatDiesUnderTheDrainerBlamesNoMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var kills atomic.Int32
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Attempt == 1 {
			return inbox.RetryAfter(time.Hour, errors.New("park it"))
		}
		if kills.Add(1) <= 3 {
			_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return inbox.Permanent(err) // what a careless handler does
		}
		return apply(ctx, tx, m)
	}, w.options())
	w.produce(record("u1", 1, ""))
	w.wait("held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1 })
	if _, err := w.db.Pool.Exec(t.Context(), `UPDATE inbox_holds SET next_at = now()`); err != nil {
		t.Fatal(err)
	}
	w.wait("a fate", func() bool {
		return w.count(`SELECT count(*) FROM processed_messages WHERE state = 'done'`) == 1 || w.count(`SELECT count(*) FROM outbox`) > 0
	})
	w.wantEffects("u1", 1)
	if n := w.count(`SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d dead letters, want 0", n)
	}
}

func TestOutageParksNothingAndEverythingIsDoneAfterIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var down atomic.Bool
	down.Store(true)
	var mu sync.Mutex
	probed := map[string]bool{}
	c := w.consumer(onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if down.Load() {
			mu.Lock()
			defer mu.Unlock()
			probed[m.Key] = true
			return inbox.Outage(errors.New("provider answers 503"))
		}
		return apply(ctx, tx, m)
	}), w.options())
	w.run(c)
	for key := range 10 {
		w.produce(record(fmt.Sprintf("u%d", key), 1, ""), record(fmt.Sprintf("u%d", key), 2, ""))
	}
	w.wait("probes of three keys", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(probed) >= 3
	})
	if err := c.Ready(); err == nil {
		t.Error("Ready() = nil while the circuit is open")
	}
	if parked := w.parked(inbox.Filter{}); len(parked) != 0 {
		t.Errorf("parked during an outage: %s", w.describeParked())
	}
	down.Store(false)
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 20 })
	w.wait("ready again", func() bool { return c.Ready() == nil })
}

func TestManyFailingKeysOpenTheCircuitInsteadOfHoldingThemAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var down atomic.Bool
	down.Store(true)
	c := w.consumer(onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if down.Load() {
			return errors.New("something is wrong")
		}
		return apply(ctx, tx, m)
	}), w.options())
	w.run(c)
	records := make([]*kgo.Record, 400)
	for key := range records {
		records[key] = record(fmt.Sprintf("u%d", key), 1, "")
	}
	w.produce(records...)
	w.wait("the circuit to open", func() bool { return c.Ready() != nil && w.count(`SELECT count(*) FROM inbox_holds`) > 50 })
	if n := w.count(`SELECT count(*) FROM inbox_holds`); n > 200 {
		t.Errorf("%d keys held, want about 100", n)
	}
	down.Store(false)
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 400 })
	w.wait("no holds", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
	if n := w.count(`SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d dead letters, want 0", n)
	}
}

func TestABadDeployHoldsMessagesInsteadOfKillingThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var broken atomic.Bool
	broken.Store(true)
	w.start(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if broken.Load() {
			return inbox.Permanent(errors.New("cannot decode"))
		}
		return apply(ctx, tx, m)
	}, w.options())
	records := make([]*kgo.Record, 60)
	for key := range records {
		records[key] = record(fmt.Sprintf("u%d", key), 1, "")
	}
	w.produce(records...)
	w.wait("all parked", func() bool { return len(w.parked(inbox.Filter{})) == 60 })
	if dead := len(w.parked(inbox.Filter{State: inbox.StateDead})); dead > 20 {
		t.Errorf("%d of 60 dead, want at most those that came before it showed", dead)
	}
	broken.Store(false)
	w.wait("the held ones", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 0 })
}
