package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/saga"
)

// blockedLanes is how many lanes have a head that fails and is tried again.
const blockedLanes = 100

// waitingInstances measures how long an engine takes to claim a lane and read its head: beside 100 blocked lanes with nothing
// behind their heads, with many instances behind them, and with a snapshot that is held since before many others came and went.
func (b *bench) waitingInstances(ctx context.Context) ([]table.Row, error) {
	states := []*queue{
		{name: "nothing waits"},
		{name: fmt.Sprintf("%d wait", b.waiting), behind: b.waiting / blockedLanes},
		{name: fmt.Sprintf("%d wait, snapshot held", b.waiting), behind: b.waiting / blockedLanes, churn: b.churn},
	}
	err := b.withQueues(ctx, states, func() error {
		for n := range b.Rounds {
			for _, q := range states {
				if err := q.measure(ctx, b.claims); err != nil {
					return err
				}
				fmt.Printf("waiting, round %d: %s: claim %.3f ms, full look %.3f ms\n", n+1, q.name, q.claim[n], q.sweep[n])
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var rows []table.Row
	for _, q := range states {
		rows = append(rows,
			table.Row{Name: q.name + ": claim of a lane and its head (ms)", Value: table.Median(q.claim), Format: "%.3f"},
			table.Row{Name: q.name + ": the full look of each second (ms)", Value: table.Median(q.sweep), Format: "%.3f"})
	}
	behind, held := 100*(times(states[1].claim, states[0].claim)-1), times(states[2].claim, states[0].claim)
	return append(rows,
		table.Row{Name: "claim, " + states[1].name + ", against none (%)", Value: behind, Format: "%+.0f", Aim: "± 20", Met: math.Abs(behind) <= 20},
		table.Row{Name: "claim, " + states[2].name + ": times slower than with none", Value: held, Format: "%.2f", Aim: "≤ 2", Met: held <= 2},
	), nil
}

// times is the median of what a is of b in each round.
func times(a, b []float64) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return table.Median(ratios)
}

// queue is a database with blocked lanes.
type queue struct {
	name   string
	behind int // instances behind each head
	churn  int // instances that ended under the snapshot

	pool         *pgxpool.Pool
	watch        *stopwatch
	free         int       // instances in lanes of their own so far
	claim, sweep []float64 // medians of each round, in milliseconds
}

// withQueues makes a database for each queue, hands over while all are there, and removes them.
func (b *bench) withQueues(ctx context.Context, queues []*queue, use func() error) error {
	if len(queues) == 0 {
		return use()
	}
	q, name := queues[0], fmt.Sprint("waiting_", len(queues))
	return b.withSagas(ctx, name, func(*pgxpool.Pool) (err error) {
		q.watch = &stopwatch{}
		if q.pool, err = newPool(ctx, b.Server.URL(name), q.watch); err != nil {
			return err
		}
		defer q.pool.Close()
		if err := q.fill(ctx); err != nil {
			return err
		}
		if q.churn == 0 {
			return b.withQueues(ctx, queues[1:], use)
		}
		snapshot, err := q.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			return err
		}
		defer func() { _ = snapshot.Rollback(ctx) }()
		if _, err := snapshot.Exec(ctx, `SELECT count(*) FROM effects`); err != nil {
			return err
		}
		if err := q.run(ctx, func(e *saga.Engine, done <-chan struct{}) error {
			return q.complete(ctx, q.churn, 1000, e, done)
		}); err != nil {
			return err
		}
		return b.withQueues(ctx, queues[1:], use)
	})
}

func (q *queue) fill(ctx context.Context) error {
	if err := start(ctx, q.pool, blockedLanes*(1+q.behind), func(i int) saga.NewInstance {
		definition := "free"
		if i < blockedLanes {
			definition = "blocked"
		}
		return inLane(fmt.Sprint("blocked-", i%blockedLanes), definition)
	}); err != nil {
		return err
	}
	return pgserver.Settle(ctx, q.pool)
}

// run runs an engine until use returns. done is told of each free instance.
func (q *queue) run(ctx context.Context, use func(e *saga.Engine, done <-chan struct{}) error) error {
	done := make(chan struct{}, 1000)
	defs := []*saga.Definition{
		saga.Define("blocked", 1, saga.Local("fail", func(context.Context, pgx.Tx, *saga.Instance) error {
			return errors.New("as it is meant to")
		})),
		saga.Define("free", 1, saga.Local("tell", func(context.Context, pgx.Tx, *saga.Instance) error {
			done <- struct{}{}
			return nil
		})),
	}
	// Each blocked head is tried about every second, and is claimed for it.
	opts := saga.EngineOptions{RetryMin: time.Second, RetryMax: time.Second, MaxAttempts: math.MaxInt32}
	return whileRunning(ctx, q.pool, opts, defs, func(e *saga.Engine) error { return use(e, done) })
}

// complete starts n instances, a page at a time, and waits until they have run.
func (q *queue) complete(ctx context.Context, n, page int, e *saga.Engine, done <-chan struct{}) error {
	for ; n > 0; n -= page {
		if err := start(ctx, q.pool, page, func(int) saga.NewInstance {
			q.free++
			return inLane(fmt.Sprint("free-", q.free), "free")
		}); err != nil {
			return err
		}
		e.Kick()
		for range page {
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// measure adds a round of n claims.
func (q *queue) measure(ctx context.Context, n int) error {
	return q.run(ctx, func(e *saga.Engine, done <-chan struct{}) error {
		if err := q.complete(ctx, n/10, 1, e, done); err != nil { // connections and their plans
			return err
		}
		q.watch.reset()
		if err := q.complete(ctx, n, 1, e, done); err != nil {
			return err
		}
		// There is a full look each second, and what is retried for it to find.
		for {
			claim, sweep, ok := q.watch.medians()
			if ok {
				q.claim, q.sweep = append(q.claim, claim), append(q.sweep, sweep)
				return nil
			}
			if err := q.complete(ctx, 1, 1, e, done); err != nil {
				return err
			}
		}
	})
}

// stopwatch times the statements of an engine that claim lanes and read their heads, round trip included, where they found any.
type stopwatch struct {
	mu                   sync.Mutex
	claims, heads, sweep []float64 // milliseconds
}

type timedKey struct{}

type timed struct {
	into  *[]float64
	began time.Time
}

// TraceQueryStart is pgx's.
func (w *stopwatch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	var into *[]float64
	switch {
	case strings.Contains(data.SQL, "FROM saga_instances") && strings.Contains(data.SQL, "CROSS JOIN LATERAL"):
		into = &w.heads
	case !strings.Contains(data.SQL, "ORDER BY run_at"):
		return ctx
	case data.Args[0].(pgtype.Timestamptz).Time.IsZero(): // from the oldest on
		into = &w.sweep
	default:
		into = &w.claims
	}
	return context.WithValue(ctx, timedKey{}, timed{into, time.Now()})
}

// TraceQueryEnd is pgx's.
func (w *stopwatch) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	t, ok := ctx.Value(timedKey{}).(timed)
	if !ok || data.Err != nil || data.CommandTag.RowsAffected() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	*t.into = append(*t.into, time.Since(t.began).Seconds()*1000)
}

func (w *stopwatch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claims, w.heads, w.sweep = nil, nil, nil
}

// medians returns the time of a claim from the floor with its head, and of a claim from the oldest lane on. It is not ok before
// there were both.
func (w *stopwatch) medians() (claim, sweep float64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.claims) == 0 || len(w.heads) == 0 || len(w.sweep) == 0 {
		return 0, 0, false
	}
	return table.Median(w.claims) + table.Median(w.heads), table.Median(w.sweep), true
}
