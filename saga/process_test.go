package saga_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

// processVariable makes the test binary an engine: it holds the URL of its database.
const processVariable = "SAGA_TEST_ENGINE"

// engineProcess runs an engine over definitions that kill it, until its standard input ends.
func engineProcess(url string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the parent's end is ours, however it comes
		stop()
	}()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	var defs []*saga.Definition
	for _, k := range killers {
		defs = append(defs, k.def)
	}
	opts := quick()
	opts.MaxCrashes = maxDeaths
	// An engine that is slower than its own lease takes the lane anew, and what it has read of deaths and not written is forgotten.
	opts.Lease = 10 * time.Second
	e, err := saga.NewEngine(pool, defs, opts)
	if err != nil {
		return err
	}
	return e.Run(ctx)
}

const maxDeaths = 4

// killers are definitions whose instance in lane poison kills its engine's process each time that it comes to one place, and
// whose other instances are harmless.
var killers = []struct {
	place string
	def   *saga.Definition
}{
	{"a local step exits", saga.Define("a local step exits", 1, saga.Local("die", dieHere(exit)).Pivot())},
	{"a local step exhausts the stack", saga.Define("a local step exhausts the stack", 1, saga.Local("die", dieHere(overflow)).Pivot())},
	{"a step of a batch exits", saga.Define("a step of a batch exits", 1, saga.LocalBatch("die", each(dieHere(exit))).Pivot())},
	{"a call exits", saga.Define("a call exits", 1, remoteThatDies("call"))},
	{"a query exits", saga.Define("a query exits", 1, remoteThatDies("query"))},
	{"an undo exits", saga.Define("an undo exits", 1, remoteThatDies("undo"), saga.Local("refuse", refusePoison).Pivot())},
	{"a local undo exits", saga.Define("a local undo exits", 1, saga.Local("do", nothing).Undo(dieHere(exit)), saga.Local("refuse", refusePoison).Pivot())},
	{"the end exits", saga.Define("the end exits", 1, saga.Local("refuse", refusePoison).Pivot()).OnFailed(
		func(context.Context, pgx.Tx, *saga.Instance, saga.Failure) error {
			exit()
			return nil
		})},
}

func exit() { os.Exit(3) }

// overflow ends the process with a fatal error, which nothing can recover.
func overflow() {
	debug.SetMaxStack(1 << 20)
	os.Exit(deeper(0)) // it does not come back
}

func deeper(n int) int {
	if n < 0 {
		return 0
	}
	return 1 + deeper(n+1)
}

func dieHere(die func()) saga.LocalFunc {
	return func(_ context.Context, _ pgx.Tx, in *saga.Instance) error {
		if in.Lane == "poison" {
			die()
		}
		return nil
	}
}

func refusePoison(_ context.Context, _ pgx.Tx, in *saga.Instance) error {
	if in.Lane == "poison" {
		return saga.Rejected("no")
	}
	return nil
}

// remoteThatDies is a call that kills its process in one of its functions. Those of the others take longer than it takes
// to die, so each of them is lost with the process as often as it is under way with it.
func remoteThatDies(where string) *saga.RemoteStep {
	at := func(ctx context.Context, here string, in *saga.Instance) error {
		switch {
		case in.Lane == "poison" && here == where:
			exit()
		case in.Lane == "poison" && where == "query":
			return errTimeout
		case in.Lane != "poison" && here == "call":
			timer := time.NewTimer(50 * time.Millisecond)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		return nil
	}
	return saga.Remote("die",
		func(ctx context.Context, in *saga.Instance, _ *saga.Call) (any, error) {
			return nil, at(ctx, "call", in)
		}).
		Query(func(ctx context.Context, in *saga.Instance, _ *saga.Call) (saga.Answer, error) {
			return saga.NotYet(), at(ctx, "query", in)
		}).
		Undo(func(ctx context.Context, in *saga.Instance, _ *saga.Call) error { return at(ctx, "undo", in) }).
		Timeout(2 * time.Second)
}

// An engine that really dies takes its process's other lanes down with it, as long as it is not known whose fault it was.
func TestAProcessThatDiesAtOneInstanceEachTimeMakesItStuckAndHoldsNobodyElse(t *testing.T) {
	t.Parallel()
	for _, k := range killers {
		t.Run(k.place, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			poison := newTrip("poison")
			all := []saga.NewInstance{poison}
			for i := range 8 {
				all = append(all, newTrip(fmt.Sprintf("user-%d", i)))
			}
			for i := range all {
				all[i].Definition = k.place
			}
			start(t, pool, all...)
			deaths := 0
			for runEngineProcess(t, pool, len(all)) {
				if deaths++; deaths > maxDeaths {
					t.Fatalf("the instance has killed %d processes, want it stuck after %d", deaths, maxDeaths)
				}
				sagatest.Expire(t.Context(), t, pool)
			}
			h := load(t, pool, poison.ID)
			if h.Instance.State != saga.StuckState || !strings.Contains(h.Instance.Error, "engines died") {
				t.Errorf("after %d deaths the instance is %s (%s), want it stuck because engines died", deaths, h.Instance.State, h.Instance.Error)
			}
			if deaths != maxDeaths {
				t.Errorf("%d processes died, want MaxCrashes, which is %d", deaths, maxDeaths)
			}
			for _, other := range all[1:] {
				if h := load(t, pool, other.ID); h.Instance.State != saga.Completed {
					t.Errorf("%s is %s (%s), want it completed", other.Lane, h.Instance.State, h.Instance.Error)
				}
			}
		})
	}
}

// runEngineProcess runs an engine until every instance is at rest. It reports whether the engine died before.
func runEngineProcess(t *testing.T, pool *pgxpool.Pool, instances int) (died bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), processVariable+"="+pool.Config().ConnString())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	until(t, "the process died, or all are at rest", func() bool {
		select {
		case err = <-ended:
			died = true
			return true
		default:
			return count(t, pool, `SELECT count(*) FROM saga_instances WHERE finished_at IS NOT NULL OR state = 'stuck'`) == instances
		}
	})
	if died {
		var exited *exec.ExitError
		if !errors.As(err, &exited) {
			t.Fatalf("the process ended with %v, want it killed by the step", err)
		}
		return true
	}
	if err := stdin.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the process ended with %v, want nil once it is told to", err)
	}
	return false
}
