package api

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/order"
)

const (
	// watchInterval is how often awaited orders are looked at.
	watchInterval = 50 * time.Millisecond
	// maxWaiters bounds the requests that wait at once. One service key may have half of them, one user key a hundred.
	maxWaiters        = 10_000
	maxServiceWaiters = maxWaiters / 2
	maxUserWaiters    = 100
)

// watch tells waiting requests that their order has changed. It looks at all awaited orders in one query, so a request that
// waits costs neither a connection nor a query of its own.
type watch struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	wake chan struct{} // holds one note that somebody waits

	mu      sync.Mutex
	waiters map[uuid.UUID]map[*waiter]bool
	count   int
	perKey  map[[sha256.Size]byte]int
}

// waiter is one request that waits until its order satisfies it.
type waiter struct {
	satisfied func(order.Status, int64) bool
	done      chan struct{}
}

func newWatch(pool *pgxpool.Pool, log *slog.Logger) *watch {
	return &watch{pool: pool, log: log, wake: make(chan struct{}, 1), waiters: map[uuid.UUID]map[*waiter]bool{}, perKey: map[[sha256.Size]byte]int{}}
}

// enter takes a place among those who wait. The caller leaves when its request ends.
func (w *watch) enter(caller principal) (leave func(), err error) {
	most := maxUserWaiters
	if caller.role == RoleService {
		most = maxServiceWaiters
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.perKey[caller.key] >= most:
		return nil, newProblem(http.StatusTooManyRequests, kindRateLimited, "Too many requests of this key wait for orders.").
			retry(time.Second)
	case w.count >= maxWaiters:
		return nil, newProblem(http.StatusServiceUnavailable, kindOverloaded, "Too many requests wait for orders; ask without wait_for.").
			retry(time.Second)
	}
	w.count++
	w.perKey[caller.key]++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.count--
		if w.perKey[caller.key]--; w.perKey[caller.key] == 0 {
			delete(w.perKey, caller.key)
		}
	}, nil
}

// await returns when the order's status and version satisfy the caller, when patience ends, or when the api shuts down. What
// the order is then, the caller reads. Its error is ctx's. The caller has a place, see [watch.enter].
func (w *watch) await(ctx context.Context, id uuid.UUID, patience time.Duration, satisfied func(order.Status, int64) bool) error {
	me := &waiter{satisfied: satisfied, done: make(chan struct{})}
	w.mu.Lock()
	if w.waiters[id] == nil {
		w.waiters[id] = map[*waiter]bool{}
	}
	w.waiters[id][me] = true
	w.mu.Unlock()
	defer w.forget(id, me)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-me.done:
	case <-timer.C:
	case <-httpserver.Draining(ctx):
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (w *watch) forget(id uuid.UUID, me *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters[id], me)
	if len(w.waiters[id]) == 0 {
		delete(w.waiters, id)
	}
}

// Run looks at the awaited orders until ctx ends.
func (w *watch) Run(ctx context.Context) error {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		next := ticker.C
		ids := w.awaited()
		if len(ids) == 0 {
			next = nil // nobody waits: sleep until somebody does
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
			continue
		case <-next:
		}
		if err := w.look(ctx, ids); err != nil && ctx.Err() == nil {
			// Those who wait find out by themselves when they read the order.
			w.log.WarnContext(ctx, "cannot look at awaited orders, will retry", slog.Any("error", err))
		}
	}
}

func (w *watch) awaited() []uuid.UUID {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make([]uuid.UUID, 0, len(w.waiters))
	for id := range w.waiters {
		ids = append(ids, id)
	}
	return ids
}

func (w *watch) look(ctx context.Context, ids []uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	rows, _ := w.pool.Query(ctx, `
		SELECT id, status, version
		FROM orders
		WHERE id = ANY($1)`, ids) // ForEachRow reports the error
	var id uuid.UUID
	var status order.Status
	var version int64
	_, err := pgx.ForEachRow(rows, []any{&id, &status, &version}, func() error {
		w.tell(id, status, version)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at %d awaited orders: %w", len(ids), err)
	}
	return nil
}

func (w *watch) tell(id uuid.UUID, status order.Status, version int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for waiting := range w.waiters[id] {
		if waiting.satisfied(status, version) {
			close(waiting.done)
			delete(w.waiters[id], waiting)
		}
	}
	if len(w.waiters[id]) == 0 {
		delete(w.waiters, id)
	}
}
