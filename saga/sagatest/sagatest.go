// Package sagatest crashes saga engines at every point where a crash can matter, and lets a test check what is left.
//
// A crash is what kill -9 leaves behind: what was committed stays, nothing after the point happens, and the lanes stay
// leased until the lease ends. The points are
//
//   - before and after each commit of the engine: the intents of calls, their outcomes together with the local steps behind
//     them, compensations, the end, the count of engines that died, lanes that are given back, successes that came late;
//   - before and after each [saga.Call.Save];
//   - before and after each call: an action, a query, a compensation;
//   - after each claim. Before it, an engine has changed nothing since the point that it passed last.
//
// Longer leases are the only thing that an engine commits without a point: they move no instance.
package sagatest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	// Points, if there are any, are all that a run without a crash passes, by what they are before or after: "commit claim",
	// "commit save charge", "call charge", "ask charge", "undo charge". Where the run passes another or passes one no more,
	// EveryCrash fails and names it, so that a new commit or call comes with a look at what a crash there leaves. A commit is
	// named for the state and the step that the first instance of its transaction leaves it with: for one name each time,
	// start one instance.
	Points []string
	// Limit bounds one run. Default 1 min.
	Limit time.Duration
}

// EveryCrash runs the world that build returns once without a crash, and then three times for each point that it passed:
// an engine dies there, and a new one goes on; the new one dies soon after as well; the new one dies at the next point of
// that name as well. Each run has a world of its own. It logs the points, and returns their names in the order in which they
// were passed.
func EveryCrash(t *testing.T, build func(t testing.TB) *World) []string {
	t.Helper()
	var points []string
	t.Run("no crash", func(t *testing.T) {
		w := build(t)
		points = w.live(t)
		w.Check(t)
		w.compare(t, points)
	})
	run := func(name string, deaths ...death) {
		t.Run(name, func(t *testing.T) {
			w := build(t)
			w.live(t, deaths...)
			w.Check(t)
		})
	}
	for i, point := range points {
		name := fmt.Sprintf("%02d %s", i+1, point)
		run(name, nth(i+1))
		run(name+", and soon after", nth(i+1), nth(1+i%4))
		run(name+", and again", nth(i+1), named(point))
	}
	t.Logf("crashed at %d points, at each once, twice, and once more soon after:\n%s", len(points), strings.Join(points, "\n"))
	return points
}

// death says whether an engine dies at the n-th point that it passes.
type death func(n int, point string) bool

func nth(want int) death { return func(n int, _ string) bool { return n == want } }

func named(want string) death { return func(_ int, point string) bool { return point == want } }

// compare tells what was passed and not expected, and the other way round.
func (w *World) compare(t testing.TB, passed []string) {
	t.Helper()
	if len(w.Points) == 0 {
		return
	}
	var got []string
	for _, point := range passed {
		_, what, _ := strings.Cut(point, " ") // before or after
		if !slices.Contains(got, what) {
			got = append(got, what)
		}
	}
	for _, what := range got {
		if !slices.Contains(w.Points, what) {
			t.Errorf("a crash point that World.Points does not have: %q", what)
		}
	}
	for _, what := range w.Points {
		if !slices.Contains(got, what) {
			t.Errorf("a crash point of World.Points that was not passed: %q", what)
		}
	}
	if t.Failed() {
		t.Logf("points passed: %q", got)
	}
}

// live starts the instances and runs engines until they are at rest. The n-th engine dies as deaths[n] says, the last one
// runs on. It returns the points of the last one.
func (w *World) live(t testing.TB, deaths ...death) []string {
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
	for _, dies := range deaths {
		if _, err := w.engine(ctx, t, dies); err != nil && !errors.Is(err, crash.ErrKilled) {
			t.Fatalf("engine that was to die: %v", err)
		}
		Expire(ctx, t, w.Pool)
	}
	points, err := w.engine(ctx, t, func(int, string) bool { return false })
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
func (w *World) engine(ctx context.Context, t testing.TB, dies death) ([]string, error) {
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
		return dies(len(points), points[len(points)-1])
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
