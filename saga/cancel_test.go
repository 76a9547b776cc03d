package saga_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// A cancel is requested at each point that an engine passes. Whatever it meets, the saga ends completed and paid or
// compensated and not; and if the request was committed before the pivot's transaction began, it wins.
func TestACancelAtEveryPointIsHonouredWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	pool := database(t)
	script := []behaviour{timeout, lostAnswer}
	total := runCancelled(t, pool, -1, script)
	won := 0
	for at := range total {
		t.Run(fmt.Sprintf("point %d", at), func(t *testing.T) {
			if runCancelled(t, pool, at, script) < 0 {
				won++
			}
		})
	}
	if won < 2 || won >= total {
		t.Errorf("the cancel won at %d of %d points, want some and not all", won, total)
	}
}

// runCancelled returns the number of points passed, or -1 if the saga was compensated.
func runCancelled(t *testing.T, pool *pgxpool.Pool, at int, script []behaviour) int {
	p := newProvider(script...)
	in := newTrip(fmt.Sprintf("user-%d", at))
	start(t, pool, in)
	var (
		points   atomic.Int32
		requests sync.WaitGroup
	)
	request := func() error {
		return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
	}
	ctx, stop := context.WithCancel(crash.With(t.Context(), func(kind crash.Kind, what string) bool {
		if int(points.Add(1))-1 != at || kind == crash.AfterCommit && what == "completed" {
			return false
		}
		if kind == crash.BeforeCommit {
			// The transaction holds the lane's row: the request has to wait for it.
			requests.Go(func() { _ = request() })
			return false
		}
		if err := request(); err != nil {
			t.Errorf("RequestCancel = %v, want nil", err)
		}
		return false
	}))
	defer stop()
	e, err := saga.NewEngine(pool, []*saga.Definition{trip(p)}, quick())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	defer func() {
		if t.Failed() {
			h := load(t, pool, in.ID)
			t.Logf("instance %+v, journal %s", h.Instance, journal(h))
		}
	}()
	until(t, "the saga has ended", func() bool { return load(t, pool, in.ID).Instance.State.Final() })
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	requests.Wait()
	// The last transaction of a paid trip is the pivot's: a request that found the trip live came before it.
	want := saga.Completed
	if load(t, pool, in.ID).Instance.CancelRequested {
		want = saga.Compensated
	}
	checkTrip(t, pool, p, in, want)
	if want == saga.Compensated {
		return -1
	}
	return int(points.Load())
}

func TestUndoRunsForAStepWhoseOutcomeIsUnknown(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	// The provider takes the charge and says nothing; it will carry it out whenever it likes.
	p.script = []behaviour{chargedLater}
	silent := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) {
		return saga.Answer{}, errTimeout
	}
	def := saga.Define("trip", 1,
		saga.LocalBatch("hold seat", hold).UndoBatch(release),
		saga.Remote("charge", p.charge).Query(silent).Undo(p.refund).Timeout(time.Second),
	).Deadline(time.Hour).OnFailed(failed)
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), def)
	until(t, "the outcome of the charge is unknown", func() bool {
		return strings.Contains(journal(load(t, pool, in.ID)), "do charge unknown")
	})
	until(t, "its deadline ends it", func() bool {
		passDeadline(t, pool, in.ID) // again and again: the engine writes back what it has read
		return load(t, pool, in.ID).Instance.State == saga.Compensated
	})
	h := load(t, pool, in.ID)
	if h.Instance.Failure.Kind != saga.FailedDeadline {
		t.Errorf("failure = %+v, want the deadline", h.Instance.Failure)
	}
	want := "do hold seat succeeded; do charge unknown; undo charge succeeded; undo hold seat succeeded; "
	if got := journal(h); got != want {
		t.Errorf("journal = %s, want %s", got, want)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, in := range p.late {
		p.carryOut(in)
	}
	if p.cancels != 1 || p.charges != 0 {
		t.Errorf("%d cancels and %d charges, want the barrier to have refused the late charge", p.cancels, p.charges)
	}
}

// The confirm never left, which is certain, and the intent that was made before it is there all the same: what was saved says so.
func TestUndoRunsForACallThatSavedProgressAndNeverLeft(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider(slices.Repeat([]behaviour{notSent}, 1000)...)
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), trip(p))
	until(t, "the charge has not left", func() bool {
		return strings.Contains(journal(load(t, pool, in.ID)), "do charge absent")
	})
	inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
	h := untilState(t, pool, in.ID, saga.Compensated)
	want := "do check succeeded; do hold seat succeeded; do charge absent; undo charge succeeded; undo hold seat succeeded; "
	if got := journal(h); got != want || p.cancels != 1 {
		t.Errorf("%d cancels, journal %s; want the intent cancelled, %s", p.cancels, got, want)
	}
}

func TestACancelOfAWaitingInstanceUndoesNothing(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	in := newTrip("anna")
	start(t, pool, in)
	inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
	inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
	engine(t, pool, quick(), trip(p))
	h := untilState(t, pool, in.ID, saga.Compensated)
	if len(h.Journal) != 0 || p.calls != 0 {
		t.Errorf("journal = %s and %d calls, want nothing done", journal(h), p.calls)
	}
	if n := count(t, pool, `SELECT count(*) FROM trips WHERE reason LIKE 'cancelled%'`); n != 1 {
		t.Error("the cancel was not told")
	}
}
