package saga_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

// An engine is paused inside a call past its lease. Another takes the lane, the deadline passes, the saga is
// compensated. Then the first resumes, and its charge goes through after all.
func TestALateSuccessOfAFencedEngineIsRefundedOnce(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	paused, resume := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	charge := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
		if !first.CompareAndSwap(false, true) {
			return nil, errTimeout
		}
		close(paused)
		<-resume
		// No Save, no barrier at the provider: the worst participant.
		p.create(call.Key)
		return payment{"pi_1"}, p.confirm(call.Key)
	}
	var undone, told atomic.Int32
	undo := func(ctx context.Context, in *saga.Instance, call *saga.Call) error {
		undone.Add(1)
		return p.refund(ctx, in, call)
	}
	def := saga.Define("trip", 1,
		saga.LocalBatch("hold seat", hold).UndoBatch(release),
		saga.Remote("charge", charge).Query(p.find).Undo(undo).Timeout(time.Second)).
		Deadline(time.Hour).
		OnFailed(func(ctx context.Context, tx pgx.Tx, in *saga.Instance, cause saga.Failure) error {
			told.Add(1)
			return failed(ctx, tx, in, cause)
		})
	in := newTrip("anna")
	start(t, pool, in)
	stop := engine(t, pool, quick(), def)
	<-paused
	passDeadline(t, pool, in.ID)
	sagatest.Expire(t.Context(), t, pool)
	engine(t, pool, quick(), def)
	untilState(t, pool, in.ID, saga.Compensated)
	if p.charges != 0 {
		t.Fatalf("%d charges before the engine resumed, want none", p.charges)
	}
	close(resume)
	until(t, "the late charge is refunded", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.refunds == 1
	})
	h := untilState(t, pool, in.ID, saga.Compensated)
	stop()
	if p.charges != 1 || p.refunds != 1 || undone.Load() < 1 || undone.Load() > 2 || told.Load() != 1 {
		t.Errorf("%d charges, %d refunds, undone %d times, told %d times, want 1, 1, 1 or 2, and 1", p.charges, p.refunds, undone.Load(), told.Load())
	}
	if len(h.Audit) != 1 || h.Audit[0].Action != "late" {
		t.Errorf("audit = %+v, want the late success", h.Audit)
	}
	if n := count(t, pool, `SELECT free FROM seats`); n != 1000000 {
		t.Errorf("%d seats free, want all: the seat must not be released twice", n)
	}
}

func TestAFencedEngineWritesNothing(t *testing.T) {
	t.Parallel()
	pool := database(t)
	paused, resume := make(chan struct{}), make(chan struct{})
	saved := make(chan error, 1)
	var first atomic.Bool
	p := newProvider()
	charge := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
		if !first.CompareAndSwap(false, true) {
			return p.charge(ctx, in, call)
		}
		close(paused)
		<-resume
		err := call.Save(context.WithoutCancel(ctx), payment{"pi_zombie"})
		saved <- err
		return payment{"pi_zombie"}, err
	}
	def := saga.Define("trip", 1,
		saga.Remote("charge", charge).Query(p.find).Undo(p.refund).Record(paid).Timeout(time.Second),
		saga.Local("confirm", confirm).Pivot())
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), def)
	<-paused
	sagatest.Expire(t.Context(), t, pool)
	engine(t, pool, quick(), def)
	before := untilState(t, pool, in.ID, saga.Completed)
	close(resume)
	if err := <-saved; !errors.Is(err, saga.ErrFenced) {
		t.Errorf("Save of a fenced engine = %v, want ErrFenced", err)
	}
	after := load(t, pool, in.ID)
	if before.Instance.Rev != after.Instance.Rev || journal(before) != journal(after) {
		t.Errorf("a fenced engine changed the saga: %s became %s", journal(before), journal(after))
	}
	if n := count(t, pool, `SELECT count(*) FROM trips WHERE paid = 'pi_1'`); n != 1 || p.charges != 1 {
		t.Errorf("%d trips paid, %d charges, want one of each", n, p.charges)
	}
}

// Two engines, and leases that are torn from them all the time.
func TestTwoEnginesWithOverlappingLeasesDoEverythingOnce(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var script []behaviour
	for i := range 200 {
		script = append(script, []behaviour{yes, lostAnswer, timeout, yes, notSent, no, yes, panics}[i%8])
	}
	p := newProvider(script...)
	var all []saga.NewInstance
	for i := range 120 {
		all = append(all, newTrip(fmt.Sprintf("user-%d", i%40)))
	}
	start(t, pool, all...)
	opts := patient() // leases end when they are torn, and not because the machine is slow
	opts.BatchSize = 16
	opts.MaxCrashes = 1000
	engine(t, pool, opts, trip(p))
	engine(t, pool, opts, trip(p))
	torn, left := 0, len(all)
	until(t, "all have ended", func() bool {
		// As often as the engines get on: by time, a slow machine would have nothing but torn leases.
		now := count(t, pool, `SELECT count(*) FROM saga_instances WHERE finished_at IS NULL`)
		if torn < 3 || now <= left-3 {
			sagatest.Expire(t.Context(), t, pool)
			torn, left = torn+1, now
		}
		return now == 0
	})
	completed := count(t, pool, `SELECT count(*) FROM saga_instances WHERE state = 'completed'`)
	confirmed := count(t, pool, `SELECT count(*) FROM trips WHERE state = 'confirmed'`)
	told := count(t, pool, `SELECT count(*) FROM trips WHERE state = 'failed'`)
	held := count(t, pool, `SELECT count(*) FROM holds`)
	free := count(t, pool, `SELECT free FROM seats`)
	if p.balance() != completed || confirmed != completed || held != completed || free != 1000000-completed || told != len(all)-completed {
		t.Errorf("%d completed, %d paid, %d confirmed, %d seats held, %d free, %d told of %d", completed, p.balance(), confirmed, held, free, told, len(all))
	}
	if completed == 0 || completed == len(all) {
		t.Errorf("%d of %d completed: the test saw one outcome only", completed, len(all))
	}
}

func TestStopLetsCallsEndAndGivesLanesBack(t *testing.T) {
	t.Parallel()
	pool := database(t)
	calling, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p := newProvider()
	charge := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
		once.Do(func() { close(calling) })
		<-answer
		return p.charge(ctx, in, call)
	}
	def := saga.Define("trip", 1,
		saga.Remote("charge", charge).Query(p.find).Undo(p.refund).Timeout(30*time.Second),
		saga.Remote("insure", p.charge).Query(p.find).Undo(p.refund))
	in, waiting := newTrip("anna"), newTrip("bert")
	opts := quick()
	opts.MaxCalls = 1
	e, err := saga.NewEngine(pool, []*saga.Definition{def}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	start(t, pool, in)
	<-calling
	start(t, pool, waiting)
	until(t, "the engine holds the lane that waits for a call", func() bool {
		return count(t, pool, `SELECT count(*) FROM saga_lanes WHERE lane = 'bert' AND token IS NOT NULL`) == 1
	})
	cancel()
	close(answer)
	if err := <-ended; err != nil {
		t.Fatalf("Run = %v, want nil", err)
	}
	h := load(t, pool, in.ID)
	for _, e := range h.Journal {
		if e.State != saga.EntrySucceeded {
			t.Errorf("journal after the stop = %s, want every outcome recorded", journal(h))
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_lanes WHERE token IS NOT NULL OR pending > 0 AND run_at > clock_timestamp()`); n != 0 {
		t.Errorf("%d lanes were not given back", n)
	}
}

func TestACallThatOutlivesTheGraceIsCutOffAndRecordedAsUnknown(t *testing.T) {
	t.Parallel()
	pool := database(t)
	calling := make(chan struct{})
	p := newProvider()
	charge := func(ctx context.Context, _ *saga.Instance, _ *saga.Call) (any, error) {
		close(calling)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	in := newTrip("anna")
	start(t, pool, in)
	opts := quick()
	opts.Grace = 50 * time.Millisecond
	e, err := saga.NewEngine(pool, []*saga.Definition{saga.Define("trip", 1, saga.Remote("charge", charge).Query(p.find).Undo(p.refund).Timeout(time.Minute))}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-calling
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("Run = %v, want nil", err)
	}
	if got, want := journal(load(t, pool, in.ID)), "do charge unknown; "; got != want {
		t.Errorf("journal = %s, want %s", got, want)
	}
}
