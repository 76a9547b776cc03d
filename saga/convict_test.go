package saga_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/internal/crash"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

// trial is one trip under a schedule, carried by a suspect.
type trial struct {
	*testing.T
	pool *pgxpool.Pool
	p    *provider
	in   saga.NewInstance
}

// suspect is an engine that is accused.
type suspect interface {
	begin(x *trial)
	// run is one process of the engine: it returns when the trip is over or in other hands, when ctx has ended, or dead.
	run(ctx context.Context) error
	// cancel asks for the trip to be taken back.
	cancel()
	// expire ends the leases of processes that went silent.
	expire()
}

// A checker that convicts nobody proves nothing. Each vice here is found in published engines: the naive engine without it,
// and package saga, go through the same schedule and come out clean.
func TestTheCheckerConvictsNaiveEngines(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		vice     string
		schedule func(x *trial, s suspect)
		naive    naive
		want     verdict
		clean    saga.State // how it ends without the vice
	}{
		{
			"an undo that is registered after the success is not there for a charge whose engine died",
			killedAfterTheChargeThenCancelled, naive{undoAfterSuccess: true},
			verdict{told: "failed", money: 1, seats: 1000000}, saga.Compensated,
		},
		{
			"a new key for each attempt charges again what a crash left unknown",
			killedAfterTheCharge, naive{keyPerAttempt: true},
			verdict{told: "confirmed", money: 2, held: 1, seats: 1000000, twice: ", charged 2 times and refunded 0 times"}, saga.Completed,
		},
		{
			"a timeout that is taken for a decline keeps the money of a trip that failed",
			answerLost, naive{timeoutIsNo: true},
			verdict{told: "failed", money: 1, seats: 1000000}, saga.Completed,
		},
		{
			"an undo on the context that was cancelled undoes nothing",
			cancelledDuringTheCharge, naive{undoOnItsContext: true},
			verdict{told: "failed", money: 1, held: 1, seats: 1000000}, saga.Compensated,
		},
		{
			"an engine that is not fenced confirms the trip that another one took back",
			pausedPastItsLease, naive{unfenced: true},
			verdict{told: "failed, confirmed", seats: 1000000}, saga.Compensated,
		},
	} {
		t.Run(tc.vice, func(t *testing.T) {
			t.Parallel()
			if got := tried(t, tc.schedule, &tc.naive); got != tc.want {
				t.Errorf("with the vice the trip is %s, want the checker to see it %s", got, tc.want)
			}
		})
		t.Run("not "+tc.vice, func(t *testing.T) {
			t.Parallel()
			if got, want := tried(t, tc.schedule, &naive{}), exactly(tc.clean); got != want {
				t.Errorf("without the vice the trip is %s, want it %s", got, want)
			}
		})
		t.Run("saga when "+tc.vice, func(t *testing.T) {
			t.Parallel()
			if got, want := tried(t, tc.schedule, &ours{}), exactly(tc.clean); got != want {
				t.Errorf("with package saga the trip is %s, want it %s", got, want)
			}
		})
	}
}

func tried(t *testing.T, schedule func(*trial, suspect), s suspect) verdict {
	t.Helper()
	x := &trial{T: t, pool: database(t), p: newProvider(), in: newTrip("anna")}
	s.begin(x)
	schedule(x, s)
	return judge(t, x.pool, x.p, x.in.ID)
}

// ours is package saga.
type ours struct{ *trial }

func (o *ours) begin(x *trial) {
	o.trial = x
	start(x, x.pool, x.in)
}

func (o *ours) run(ctx context.Context) error {
	e, err := saga.NewEngine(o.pool, []*saga.Definition{trip(o.p)}, quick())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	dead := false
	until(o, "the trip is over, or the engine is dead", func() bool {
		select {
		case err = <-ended:
			dead = true
			return true
		default:
			return load(o, o.pool, o.in.ID).Instance.State.Final()
		}
	})
	if dead {
		return err
	}
	stop()
	return <-ended
}

func (o *ours) cancel() {
	inTx(o, o.pool, func(tx pgx.Tx) error { return saga.RequestCancel(o.Context(), tx, o.in.ID) })
}

func (o *ours) expire() { sagatest.Expire(o.Context(), o, o.pool) }

// charged is the point at which the provider has charged the card and its answer has reached the engine's process.
func charged(kind crash.Kind, what string) bool {
	return kind == crash.AfterCall && what == "call charge"
}

func (x *trial) dies(s suspect) {
	x.Helper()
	if err := s.run(crash.With(x.Context(), charged)); !errors.Is(err, crash.ErrKilled) {
		x.Fatalf("engine that was to die after the charge: %v", err)
	}
	s.expire()
}

func (x *trial) ends(s suspect) {
	x.Helper()
	if err := s.run(x.Context()); err != nil {
		x.Errorf("engine ended with %v", err)
	}
}

func killedAfterTheCharge(x *trial, s suspect) {
	x.dies(s)
	x.ends(s)
}

func killedAfterTheChargeThenCancelled(x *trial, s suspect) {
	x.dies(s)
	s.cancel()
	x.ends(s)
}

func answerLost(x *trial, s suspect) {
	x.p.script = []behaviour{lostAnswer}
	x.ends(s)
}

// cancelledDuringTheCharge ends the context of the process that has the trip, too.
func cancelledDuringTheCharge(x *trial, s suspect) {
	ctx, stop := context.WithCancel(x.Context())
	defer stop()
	err := s.run(crash.With(ctx, func(kind crash.Kind, what string) bool {
		if charged(kind, what) {
			s.cancel()
			stop()
		}
		return false
	}))
	if err != nil {
		x.Errorf("engine ended with %v", err)
	}
	x.ends(s) // what is left for another process
}

// pausedPastItsLease stops a whole process after the charge. Another one takes the trip back, and then the first goes on.
func pausedPastItsLease(x *trial, s suspect) {
	paused, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	pause := sync.OnceFunc(func() { close(paused) })
	ctx := crash.With(x.Context(), func(kind crash.Kind, what string) bool {
		if charged(kind, what) {
			pause()
		}
		select {
		case <-paused:
			<-resume
		default:
		}
		return false
	})
	go func() { ended <- s.run(ctx) }()
	<-paused
	s.cancel()
	s.expire()
	x.ends(s)
	close(resume)
	if err := <-ended; err != nil {
		x.Errorf("engine that resumed ended with %v", err)
	}
	x.ends(s) // whatever it has left
}
