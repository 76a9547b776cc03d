package saga

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// run is one Run of an engine.
type run struct {
	*Engine
	queue *queue
	calls sync.WaitGroup
	done  chan struct{}

	// The context given to Run says when to stop starting things. What was started ends under these: a charge is not
	// cut off half way, and its outcome is still recorded.
	database func() context.Context
	outside  func() context.Context
	cutCalls context.CancelFunc
	kill     context.CancelCauseFunc
}

func newRun(ctx context.Context, e *Engine) *run {
	database, killDatabase := context.WithCancelCause(context.WithoutCancel(ctx))
	outside, cut := context.WithCancel(database)
	r := &run{Engine: e, queue: newQueue(e.opts), done: make(chan struct{}), cutCalls: cut}
	r.database = func() context.Context { return database }
	r.outside = func() context.Context { return outside }
	r.kill = func(cause error) {
		killDatabase(cause)
		r.queue.die()
	}
	return r
}

// finish gives back what is left, or reports what killed the run.
func (r *run) finish() error {
	ctx := r.database()
	defer r.kill(nil)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	claims := r.queue.claims()
	if len(claims) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.Grace)
	defer cancel()
	if err := r.giveBack(ctx, claims); err != nil {
		r.log.WarnContext(ctx, "lanes stay leased until their lease ends", "error", err)
	}
	return nil
}

// look claims lanes until ctx ends.
func (r *run) look(ctx context.Context) {
	var (
		floor   time.Time
		sweepAt time.Time
		pause   = r.opts.MinPoll
	)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.database().Done():
			return
		case <-r.kick:
		case <-timer.C:
		}
		// A lane can become due below the floor: its transaction was slow to commit, or its row was locked. The full
		// look each second finds it.
		now := time.Now()
		if now.After(sweepAt) {
			floor, sweepAt = time.Time{}, now.Add(sweepEvery)
			r.keep()
		}
		n, next, err := r.claimOnce(floor)
		switch {
		case err != nil:
			r.log.WarnContext(ctx, "could not look for work", "error", err)
			pause = min(max(2*pause, r.opts.RetryMin), r.opts.RetryMax)
		case n > 0:
			floor, pause = next, r.opts.MinPoll
		default:
			floor, pause = next, min(2*pause, r.opts.MaxPoll)
		}
		if n == r.opts.BatchSize {
			r.Kick() // there is more
		}
		timer.Reset(pause)
	}
}

// claimOnce takes what is due, as far as there is room for it, and returns the floor of the next look.
func (r *run) claimOnce(floor time.Time) (int, time.Time, error) {
	limit := min(r.queue.free(r.opts.MaxLanes), r.opts.BatchSize)
	if limit <= 0 {
		return 0, floor, nil
	}
	at := time.Now()
	ctx := r.database()
	c, err := r.claimLanes(ctx, floor, limit)
	if err != nil {
		return 0, floor, err
	}
	if len(c.lanes) == 0 {
		return 0, floor, nil
	}
	if len(c.lanes) == limit {
		floor = c.last
	} else if calm := c.now.Add(-sweepEvery); calm.After(floor) {
		floor = calm
	}
	if err := crash.At(ctx, crash.AfterCommit, "claim"); err != nil {
		r.kill(err)
		return 0, floor, err
	}
	tasks, err := r.tasks(ctx, c, at)
	r.queue.add(tasks)
	return len(c.lanes), floor, err
}

// keep renews leases that would end while their lanes wait for a worker or a call.
func (r *run) keep() {
	tasks := r.queue.waiting(time.Now().Add(r.opts.Lease / 2))
	if len(tasks) == 0 {
		return
	}
	claims := make([]claim, len(tasks))
	for i, t := range tasks {
		claims[i] = t.claim
	}
	until := time.Now().Add(r.opts.Lease)
	if err := r.renew(r.database(), claims); err != nil {
		r.log.WarnContext(r.database(), "could not renew leases", "error", err)
		return
	}
	r.queue.renewed(until, tasks)
}

// work runs transactions until there is nothing left to do.
func (r *run) work() {
	for {
		k, tasks := r.queue.pop()
		if tasks == nil {
			return
		}
		err := r.transact(tasks)
		switch {
		case err == nil:
			r.queue.grow(k)
		case errors.Is(err, crash.ErrKilled):
			r.kill(err)
		default:
			r.again(k, tasks, err)
		}
		r.queue.ran()
	}
}

// again answers a transaction that the database did not let through. Nothing of it was kept, or, when the commit
// itself failed, nobody knows: so the instances are read again.
func (r *run) again(k groupKey, tasks []*task, err error) {
	ctx := r.database()
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == deadlockDetected {
		r.queue.shrink(k)
	}
	tries := 0
	for _, t := range tasks {
		t.tries++
		// Not the database's condition, so one of these: the others must not wait for it.
		t.solo = t.solo || !infrastructure(err) && !errors.Is(err, ErrFenced)
		tries = max(tries, t.tries)
	}
	r.metrics.rerun(ctx, len(tasks))
	r.log.WarnContext(ctx, "transaction failed, will retry", "instances", len(tasks), "attempt", tries, "error", err)
	r.queue.mu.Lock()
	r.queue.later++
	r.queue.mu.Unlock()
	time.AfterFunc(jitter(min(2*time.Millisecond<<min(tries, 12), 2*time.Second)), func() {
		defer func() {
			r.queue.mu.Lock()
			r.queue.later--
			r.queue.ready.Broadcast()
			r.queue.mu.Unlock()
		}()
		r.reload(k, tasks)
	})
}

// reload reads instances again whose lanes are still held.
func (r *run) reload(k groupKey, tasks []*task) {
	ctx := r.database()
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
			r.adopt(tasks, heads)
			return
		}
	}
	r.again(k, tasks, err)
}

// adopt gives tasks what the database says, and drops those whose lanes are lost.
func (r *run) adopt(tasks []*task, heads []*state) {
	byLane := map[string]*state{}
	for _, s := range heads {
		byLane[s.in.Lane] = s
	}
	for _, t := range tasks {
		s := byLane[t.lane]
		if s == nil {
			r.lost(t)
			continue
		}
		if s.in.ID != t.s.in.ID {
			t.ev = nil
		}
		s.crashes = t.s.crashes
		t.s = s
		r.queue.push(t)
	}
}

func (o EngineOptions) backoff(attempt int) time.Duration {
	return jitter(min(o.RetryMin<<min(attempt-1, 20), o.RetryMax))
}

// jitter takes off up to half, so that what failed together does not come back together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}
