package saga

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// run is one Run of an engine. Its methods get the context that dies with the engine, not the one given to Run, which
// only says when to stop starting things: what was started is let end, and its outcome is recorded.
type run struct {
	*Engine
	queue *queue
	calls sync.WaitGroup
	saves saver
	done  chan struct{}
	stop  context.CancelCauseFunc

	mu   sync.Mutex
	cuts map[*task]context.CancelFunc
}

func newRun(e *Engine, stop context.CancelCauseFunc) *run {
	r := &run{Engine: e, queue: newQueue(e.opts), done: make(chan struct{}), stop: stop, cuts: map[*task]context.CancelFunc{}}
	r.saves.pool, r.saves.runs = e.pool, &r.calls
	return r
}

// kill ends everything at once.
func (r *run) kill(cause error) {
	r.stop(cause)
	r.queue.die()
}

// cutCalls ends the calls that are under way.
func (r *run) cutCalls() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cut := range r.cuts {
		cut()
	}
}

// callContext bounds a call by its timeout and by cutCalls.
func (r *run) callContext(ctx context.Context, t *task, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cuts[t] = cancel
	return ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.cuts, t)
		cancel()
	}
}

// finish gives back what is left, or reports what killed the run.
func (r *run) finish(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	claims := r.queue.claims()
	if len(claims) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lastWrites)
	defer cancel()
	err := r.giveBack(ctx, claims, nil)
	if errors.Is(err, crash.ErrKilled) {
		return err
	}
	if err != nil {
		r.log.WarnContext(ctx, "lanes stay leased until their lease ends", "error", err)
	}
	return nil
}

// look claims lanes until stop ends.
func (r *run) look(ctx context.Context, stop <-chan struct{}) {
	var (
		floor           time.Time
		keepAt, sweepAt time.Time
		pause           = r.opts.MinPoll
	)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		case <-r.kick:
		case <-timer.C:
		}
		now := time.Now()
		if now.After(keepAt) {
			keepAt = now.Add(sweepEvery)
			r.keep(ctx)
		}
		// A lane can become due below the floor: its transaction was slow to commit, or its row was locked. The full
		// look finds it.
		from, sweep := floor, now.After(sweepAt)
		if sweep {
			from = time.Time{}
		}
		n, next, err := r.claimOnce(ctx, from)
		if sweep {
			// While somebody holds an old snapshot it walks over all that was done since, and must not come to do nothing else.
			sweepAt = now.Add(max(sweepEvery, sweepPause*time.Since(now)))
		}
		if next.After(floor) || n == r.opts.BatchSize {
			floor = next
		}
		switch {
		case err != nil:
			r.log.WarnContext(ctx, "could not look for work", "error", err)
			pause = min(max(2*pause, r.opts.RetryMin), r.opts.RetryMax)
		case n > 0:
			pause = r.opts.MinPoll
		default:
			pause = min(2*pause, r.opts.MaxPoll)
		}
		if n == r.opts.BatchSize {
			r.Kick() // there is more
		}
		timer.Reset(pause)
	}
}

// claimOnce takes what is due, as far as there is room for it, and returns the floor of the next look.
func (r *run) claimOnce(ctx context.Context, floor time.Time) (int, time.Time, error) {
	limit := min(r.queue.free(r.opts.MaxLanes), r.opts.BatchSize)
	if limit <= 0 {
		return 0, floor, nil
	}
	at := time.Now()
	c, err := r.claimLanes(ctx, floor, limit)
	if err != nil {
		return 0, floor, err
	}
	if len(c.lanes) == 0 {
		return 0, floor, nil
	}
	r.queue.forgive(c)
	if len(c.lanes) == limit {
		floor = c.last // there may be more right behind it
	} else if calm := c.now.Add(-sweepEvery); calm.After(floor) {
		floor = calm
	}
	if err := crash.At(ctx, crash.AfterCommit, "claim"); err != nil {
		r.kill(err)
		return 0, floor, err
	}
	tasks, err := r.tasks(ctx, c, at)
	if err != nil && !errors.Is(err, crash.ErrKilled) {
		err = errors.Join(err, r.unclaim(ctx, c, tasks))
	}
	if errors.Is(err, crash.ErrKilled) {
		r.kill(err)
		return 0, floor, err
	}
	r.queue.add(tasks)
	return len(c.lanes), floor, err
}

// unclaim gives back what was claimed and came to no task. A lane that stays leased is taken for one that an engine died
// at.
func (r *run) unclaim(ctx context.Context, c *claimed, tasks []*task) error {
	left := maps.Clone(c.byLane)
	for _, t := range tasks {
		delete(left, t.lane)
	}
	ctx, cancel := context.WithTimeout(ctx, lastWrites)
	defer cancel()
	return r.giveBack(ctx, slices.Collect(maps.Values(left)), c.crashed)
}

// keep renews leases that would end while their lanes wait for a worker or a call.
func (r *run) keep(ctx context.Context) {
	tasks := r.queue.waiting(time.Now().Add(r.opts.Lease / 2))
	if len(tasks) == 0 {
		return
	}
	claims := make([]claim, len(tasks))
	for i, t := range tasks {
		claims[i] = t.claim
	}
	until := time.Now().Add(r.opts.Lease)
	if err := r.renew(ctx, claims); err != nil {
		r.log.WarnContext(ctx, "could not renew leases", "error", err)
		return
	}
	r.queue.renewed(until, tasks)
}

// work runs transactions until there is nothing left to do.
func (r *run) work(ctx context.Context) {
	for {
		k, tasks := r.queue.pop()
		if tasks == nil {
			return
		}
		suspect := tasks[0].suspect
		err := r.runGroup(ctx, tasks)
		switch {
		case err == nil:
			r.queue.grow(k)
		case errors.Is(err, crash.ErrKilled):
			r.kill(err)
		default:
			r.again(ctx, k, tasks, err)
		}
		r.queue.ran(suspect)
	}
}

// runGroup runs one transaction. A suspect is counted before, and let off if the engine is still alive after a
// transaction that came to nothing: a slow database must not make anybody stuck.
func (r *run) runGroup(ctx context.Context, tasks []*task) error {
	if !tasks[0].suspect {
		_, err := r.transact(ctx, tasks)
		return err
	}
	id := tasks[0].s.in.ID // read now: after its commit the task is in other hands
	if err := r.countRun(ctx, id, 1); err != nil {
		return err
	}
	committed, err := r.transact(ctx, tasks)
	if !committed && !errors.Is(err, crash.ErrKilled) {
		if err := r.countRun(ctx, id, -1); errors.Is(err, crash.ErrKilled) {
			return err
		} else if err != nil {
			r.log.WarnContext(ctx, "a suspect was counted that did nothing", "saga_id", id, "error", err)
		}
	}
	return err
}

// again answers a transaction that the database did not let through. Nothing of it was kept, or, when the commit
// itself failed, nobody knows: so the instances are read again.
func (r *run) again(ctx context.Context, k groupKey, tasks []*task, err error) {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == deadlockDetected && k.alone == nil {
		r.queue.shrink(k)
	}
	tries := 0
	for _, t := range tasks {
		t.tries++
		// Not the database's condition, or a wait for what somebody else holds: so one of these, and the others must not
		// wait for it.
		t.solo = t.solo || waitedInVain(err) || !infrastructure(err) && !errors.Is(err, ErrFenced)
		tries = max(tries, t.tries)
	}
	r.metrics.rerun(ctx, len(tasks))
	r.log.WarnContext(ctx, "transaction failed, will retry", "instances", len(tasks), "attempt", tries, "error", err)
	pause := jitter(min(2*time.Millisecond<<min(tries, 12), 2*time.Second))
	r.queue.after(pause, func() { r.reload(ctx, k, tasks) })
}

// reload reads instances again whose lanes are still held.
func (r *run) reload(ctx context.Context, k groupKey, tasks []*task) {
	if ctx.Err() != nil {
		return
	}
	claims := make([]claim, len(tasks))
	for i, t := range tasks {
		claims[i] = t.claim
	}
	held, err := r.stillHeld(ctx, claims)
	if err == nil {
		var heads []*state
		if heads, err = r.loadHeads(ctx, held); err == nil {
			r.adopt(ctx, tasks, heads)
			return
		}
	}
	r.again(ctx, k, tasks, err)
}

// adopt gives tasks what the database says, and drops those whose lanes are lost.
func (r *run) adopt(ctx context.Context, tasks []*task, heads []*state) {
	byLane := map[string]*state{}
	for _, s := range heads {
		byLane[s.in.Lane] = s
	}
	for _, t := range tasks {
		s := byLane[t.lane]
		if s == nil {
			r.lost(ctx, t)
			continue
		}
		if s.in.ID != t.s.in.ID {
			t.ev = nil
		}
		s.crashes = t.s.crashes
		t.s = s
		for range r.queue.push(t) {
			r.lost(ctx, t)
		}
	}
}

func (o EngineOptions) backoff(attempt int) time.Duration {
	return jitter(min(o.RetryMin<<min(attempt-1, 20), o.RetryMax))
}

// jitter takes off up to half, so that what failed together does not come back together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1) //nolint:gosec // spreads retries, keeps no secret
}
