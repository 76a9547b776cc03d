package saga

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
)

const (
	defaultTimeout   = 5 * time.Second
	defaultKeyWindow = 23 * time.Hour
	defaultLease     = 5 * time.Second
	sweepEvery       = time.Second
	sweepPause       = 20              // times as long as a full look took, if that is longer
	lastWrites       = 5 * time.Second // for the outcomes of calls that were cut off
)

// EngineOptions tune an [Engine]. The zero value is right for most.
type EngineOptions struct {
	// BatchSize is the most instances that share a transaction. Default 100.
	BatchSize int
	// Workers is the most transactions at once, each on a connection of the pool. Default 4.
	Workers int
	// MaxCalls is the most remote calls at once. Default 64.
	MaxCalls int
	// MaxLanes is the most lanes that the engine holds at once, and so the most that wait for a lease to end when it
	// is killed. Default 1000.
	MaxLanes int
	// Lease is how long a lane stays with an engine that went silent; a lane with a call under way stays at least twice
	// the call's timeout. Default 5 s.
	Lease time.Duration
	// MinPoll and MaxPoll bound the pause between two looks for work when nothing kicks: short while there was work,
	// longer the longer there was none. Defaults 2 ms and 100 ms.
	MinPoll, MaxPoll time.Duration
	// RetryMin and RetryMax bound the backoff of everything that is tried again. Defaults 100 ms and 30 s.
	RetryMin, RetryMax time.Duration
	// InDoubtEvery is how often the other side is asked about an instance that is in doubt. Default 5 min.
	InDoubtEvery time.Duration
	// MaxAttempts is how many failures of a local step, and of recording a result, make an instance stuck. Default 10.
	MaxAttempts int
	// MaxUndoAttempts is how many failures of one local compensation, or refusals of a remote one ([UndoFunc]), make an
	// instance stuck. Default 20.
	MaxUndoAttempts int
	// MaxCrashes is how many engines may die at an instance, in a local step or in a call, before it is stuck. Everything
	// that an engine held when it died may have killed it; after two deaths an instance runs and calls while no other such
	// instance does, and only what dies then is counted on, so that the others go on. Default 12.
	MaxCrashes int
	// Grace is how long Run waits, when its context ends, for calls that are under way. Default 5 s.
	Grace time.Duration
	// Log defaults to slog.Default.
	Log *slog.Logger
	// Meter defaults to one that records nothing.
	Meter metric.Meter
}

// Engine carries instances from step to step. Several engines may run on one database.
type Engine struct {
	pool    *pgxpool.Pool
	defs    map[defKey]*Definition
	opts    EngineOptions
	log     *slog.Logger
	metrics *metrics
	kick    chan struct{}
}

type defKey struct {
	name    string
	version int
}

// NewEngine returns an engine for defs, or an error that names everything that is wrong with them. It does not own the
// pool: the caller closes it after [Engine.Run] has returned.
func NewEngine(pool *pgxpool.Pool, defs []*Definition, opts EngineOptions) (*Engine, error) {
	opts = opts.withDefaults()
	errs := []error{opts.check()}
	e := &Engine{pool: pool, defs: map[defKey]*Definition{}, opts: opts, log: opts.Log, kick: make(chan struct{}, 1)}
	for _, d := range defs {
		errs = append(errs, d.check())
		k := defKey{d.name, d.version}
		if e.defs[k] != nil {
			errs = append(errs, fmt.Errorf("definition %q version %d is there twice", d.name, d.version))
		}
		e.defs[k] = d
	}
	if len(defs) == 0 {
		errs = append(errs, errors.New("no definitions"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("saga engine: %w", err)
	}
	var err error
	if e.metrics, err = newMetrics(opts.Meter); err != nil {
		return nil, fmt.Errorf("saga engine: %w", err)
	}
	return e, nil
}

// Kick makes a running engine look for work at once. It never blocks.
func (e *Engine) Kick() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Run carries instances forward until ctx ends, and returns nil then. Calls that are under way are given
// [EngineOptions.Grace] to end, and what they said is recorded; lanes are given back, so that another engine goes on at
// once. Run may be called again after it has returned, not while it runs.
func (e *Engine) Run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		refusal, err := e.checkVersions(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if refusal != nil {
			return refusal
		}
		if err == nil {
			break
		}
		e.log.WarnContext(ctx, "could not check the versions, will retry", "attempt", attempt, "error", err)
		wait(ctx, e.opts.backoff(attempt))
	}
	alive, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	r := newRun(e, stop)
	defer r.graceFrom(ctx)()
	watching, stopWatching := context.WithCancel(ctx)
	var loops errgroup.Group
	loops.Go(func() error {
		e.watch(watching)
		return nil
	})
	loops.Go(func() error {
		defer stopWatching()
		r.look(alive, ctx.Done())
		r.queue.drain()
		return nil
	})
	for range e.opts.Workers {
		loops.Go(func() error {
			r.work(alive)
			return nil
		})
	}
	_ = loops.Wait()
	r.calls.Wait()
	return r.finish(alive)
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// graceFrom cuts calls off when the grace is over: what they did is then unknown, and recorded so. A database that does
// not take that either is left behind.
func (r *run) graceFrom(ctx context.Context) (end func()) {
	stop := context.AfterFunc(ctx, func() {
		cut := time.AfterFunc(r.opts.Grace, r.cutCalls)
		leave := time.AfterFunc(r.opts.Grace+lastWrites, func() { r.kill(errors.New("the database did not take the last outcomes")) })
		<-r.done
		cut.Stop()
		leave.Stop()
	})
	return func() {
		stop()
		close(r.done)
	}
}

// checkVersions refuses to run without the code of an older version that instances still need. A newer version is left
// to the engines that have it.
func (e *Engine) checkVersions(ctx context.Context) (refusal, err error) {
	newest := map[string]int{}
	for k := range e.defs {
		newest[k.name] = max(newest[k.name], k.version)
	}
	live, err := liveVersions(ctx, e.pool)
	if err != nil {
		return nil, err
	}
	for k, n := range live {
		if e.defs[k] == nil && newest[k.name] > k.version {
			return fmt.Errorf("saga engine: %d instances of %q version %d are live and its code is gone; put it back until they have ended", n, k.name, k.version), nil
		}
	}
	return nil, nil
}
