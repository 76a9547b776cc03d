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
// that name as well. Each run has a world of its own. It logs the points at which an engine died, and returns their names in
// the order in which they were passed.
//
// How often a run passes a point may differ from run to run, as with a query that is repeated until an answer comes: the third of a
// name that comes only twice this time crashes nothing, which is logged. The first of a name in [World.Points] always comes; the
// test fails if nothing dies there.
func EveryCrash(t *testing.T, build func(t testing.TB) *World) []string {
	t.Helper()
	var points []string
	t.Run("no crash", func(t *testing.T) {
		w := build(t)
		points, _ = w.live(t)
		w.Check(t)
		w.compare(t, points)
	})
	seen := map[string]int{}
	var crashed []string
	for i, point := range points {
		seen[point]++
		nth := seen[point]
		died := 0
		run := func(name string, then ...death) {
			t.Run(name, func(t *testing.T) {
				w := build(t)
				if _, ok := w.live(t, append([]death{passing(point, nth)}, then...)...); ok {
					died++
				} else {
					w.missed(t, point, nth)
				}
				w.Check(t)
			})
		}
		name := fmt.Sprintf("%02d %s", i+1, point)
		run(name)
		run(name+", and soon after", passingAny(1+i%4))
		run(name+", and again", passing(point, 1))
		if died > 0 {
			crashed = append(crashed, point)
		}
	}
	t.Logf("crashed at %d points of %d, at each once, twice, and once more soon after:\n%s", len(crashed), len(points), strings.Join(crashed, "\n"))
	return crashed
}

// missed tells that a run did not come to the point at which its engine was to die.
func (w *World) missed(t testing.TB, point string, nth int) {
	t.Helper()
	if nth == 1 && len(w.Points) > 0 {
		t.Errorf("nothing died: this run did not pass %q", point)
		return
	}
	t.Logf("nothing died: this run passed %q less than %d times", point, nth)
}

// death says whether an engine dies at the point that it passes. It is asked once about each.
type death func(point string) bool

// passing is death at the nth point of a name.
func passing(name string, nth int) death {
	return func(point string) bool {
		if point == name {
			nth--
		}
		return point == name && nth == 0
	}
}

// passingAny is death at the nth point, whatever its name.
func passingAny(nth int) death {
	return func(string) bool {
		nth--
		return nth == 0
	}
}

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
// runs on. It returns the points of the last one, and whether the first one died.
func (w *World) live(t testing.TB, deaths ...death) (points []string, died bool) {
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
	for i, dies := range deaths {
		_, err := w.engine(ctx, t, dies)
		if err != nil && !errors.Is(err, crash.ErrKilled) {
			t.Fatalf("engine that was to die: %v", err)
		}
		died = died || i == 0 && err != nil
		Expire(ctx, t, w.Pool)
	}
	points, err = w.engine(ctx, t, func(string) bool { return false })
	if err != nil {
		t.Fatalf("engine: %v", err)
	}
	return points, died
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
		return dies(points[len(points)-1])
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
