// Package sagatest crashes saga engines at every point where a crash can matter, and lets a test check what is left.
//
// A crash is what kill -9 leaves behind: what was committed stays, nothing after the point happens, and the lanes stay
// leased until the lease ends. The points are before and after each commit of the engine and of [saga.Call.Save], and
// before and after each call.
package sagatest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// World is one run's surroundings: instances to start, the code that runs them, and what must hold afterwards.
type World struct {
	Pool        *pgxpool.Pool
	Definitions []*saga.Definition
	Options     saga.EngineOptions
	// Start is what is started. Ids and lanes must be new in each world, if worlds share a database.
	Start []saga.NewInstance
	// Started runs after the start has committed, before any engine runs: the place to request a cancel. Optional.
	Started func(t testing.TB)
	// Check is called when the instances are at rest: ended, stuck or in doubt.
	Check func(t testing.TB)
	// Limit bounds one run. Default 1 min.
	Limit time.Duration
}

// EveryCrash runs the world that build returns once without a crash, then once for each point it passed, crashing
// there and starting a new engine, and once more for each point with a second crash soon after the first. Each run has
// a world of its own. It returns the number of points.
func EveryCrash(t *testing.T, build func(t testing.TB) *World) int {
	t.Helper()
	var points []string
	t.Run("no crash", func(t *testing.T) {
		w := build(t)
		points = w.live(t)
		w.Check(t)
	})
	for i, point := range points {
		t.Run(fmt.Sprintf("%02d %s", i+1, point), func(t *testing.T) {
			w := build(t)
			w.live(t, i+1)
			w.Check(t)
		})
		t.Run(fmt.Sprintf("%02d %s, and again", i+1, point), func(t *testing.T) {
			w := build(t)
			w.live(t, i+1, 1+i%4)
			w.Check(t)
		})
	}
	t.Logf("%d crash points", len(points))
	return len(points)
}

// live starts the instances and runs engines until they are at rest. The n-th engine dies at its crashes[n]-th point,
// the last one runs on. It returns the points of the last one.
func (w *World) live(t testing.TB, crashes ...int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), orDefault(w.Limit, time.Minute))
	defer cancel()
	err := pgx.BeginFunc(ctx, w.Pool, func(tx pgx.Tx) error { return saga.Start(ctx, tx, w.Start...) })
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	if w.Started != nil {
		w.Started(t)
	}
	for _, at := range crashes {
		if _, err := w.engine(ctx, t, at); err != nil && !errors.Is(err, crash.ErrKilled) {
			t.Fatalf("engine that was to die at point %d: %v", at, err)
		}
		Expire(ctx, t, w.Pool)
	}
	points, err := w.engine(ctx, t, 0)
	if err != nil {
		t.Fatalf("engine: %v", err)
	}
	return points
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// engine runs one engine until the instances are at rest or it dies.
func (w *World) engine(ctx context.Context, t testing.TB, dieAt int) ([]string, error) {
	t.Helper()
	var (
		mu     sync.Mutex
		points []string
	)
	e, err := saga.NewEngine(w.Pool, w.Definitions, w.Options)
	if err != nil {
		return nil, err
	}
	runCtx, stop := context.WithCancel(crash.With(ctx, func(kind crash.Kind, what string) bool {
		mu.Lock()
		defer mu.Unlock()
		points = append(points, string(kind)+" "+what)
		return len(points) == dieAt
	}))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(runCtx) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return points, err
		case <-ctx.Done():
			stop()
			return points, fmt.Errorf("not at rest in time: %s; engine ended with %w", w.describe(context.WithoutCancel(ctx)), <-ended)
		case <-tick.C:
		}
		if rest, err := w.atRest(ctx); err == nil && rest {
			stop()
			return points, <-ended
		}
	}
}

func (w *World) ids() (ids []uuid.UUID) {
	for _, s := range w.Start {
		ids = append(ids, s.ID)
	}
	return ids
}

func (w *World) atRest(ctx context.Context) (rest bool, err error) {
	err = w.Pool.QueryRow(ctx, `
		SELECT count(*) = 0 FROM saga_instances
		WHERE id = ANY($1) AND state NOT IN ('completed', 'compensated', 'stuck', 'in_doubt')`, w.ids()).Scan(&rest)
	return rest, err
}

func (w *World) describe(ctx context.Context) string {
	rows, _ := w.Pool.Query(ctx, `
		SELECT format('%s %s at %s attempt %s: %s', id, state, step_name, attempt, error)
		FROM saga_instances WHERE id = ANY($1) AND finished_at IS NULL`, w.ids())
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(lines)
}

// Expire ends the leases of engines that died, as the passing of time would.
func Expire(ctx context.Context, t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(ctx, `UPDATE saga_lanes SET run_at = now() WHERE run_at > now() AND token IS NOT NULL`); err != nil {
		t.Fatalf("expire leases: %v", err)
	}
}
