package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/saga"
)

const engineCommand = "engine"

// recovery kills an engine with many instances under way, all of them in a call, and measures how long after the end of its
// lane's lease each of them goes on in another engine.
func (b *bench) recovery(ctx context.Context) ([]table.Row, error) {
	var longest, rates []float64
	err := b.withSagas(ctx, "recovery", func(pool *pgxpool.Pool) error {
		for n := range b.Rounds {
			wait, took, err := b.kill(ctx, pool)
			if err != nil {
				return err
			}
			longest, rates = append(longest, wait), append(rates, took)
			fmt.Printf("recovery, round %d: %d instances went on, the last of them %.2f s after its lease; %.2f s from the first to the last\n",
				n+1, b.running, wait, took)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	most := table.Median(longest)
	return []table.Row{
		{Name: fmt.Sprintf("kill -9 with %d running: longest wait after the lease (s)", b.running), Value: most, Format: "%.2f", Aim: "≤ 10", Met: most <= 10},
		{Name: "from the first that goes on to the last (s)", Value: table.Median(rates), Format: "%.2f"},
	}, nil
}

// kill lets an engine take instances into a call that does not return, kills it, and has another one end them. It returns the
// longest time from the end of a lane's lease to the end of its instance, and from the first such end to the last, in seconds.
func (b *bench) kill(ctx context.Context, pool *pgxpool.Pool) (longest, took float64, err error) {
	if err := fresh(ctx, pool, `effects`, func() error {
		return start(ctx, pool, b.running, func(i int) saga.NewInstance { return inLane(fmt.Sprint("user-", i), "call") })
	}); err != nil {
		return 0, 0, err
	}
	if _, err := pool.Exec(ctx, `DROP TABLE IF EXISTS leases`); err != nil {
		return 0, 0, err
	}
	var running bool
	kill, err := legs.Start(ctx, &running, engineCommand, b.Server.URL("recovery"), b.callTime.String(), fmt.Sprint(b.running))
	if err != nil {
		return 0, 0, err
	}
	err = untilCalled(ctx, pool, b.running)
	kill()
	if err != nil {
		return 0, 0, err
	}
	// What the dead engine left behind, as it stands when its last statements have ended.
	if _, err := pool.Exec(ctx, `
		CREATE TABLE leases AS
		SELECT s.id, l.run_at AS ends FROM saga_lanes l JOIN saga_instances s USING (lane) WHERE l.token IS NOT NULL`); err != nil {
		return 0, 0, err
	}
	if err := whileRunning(ctx, pool, saga.EngineOptions{}, []*saga.Definition{b.call(false)}, func(*saga.Engine) error {
		return untilEnded(ctx, pool)
	}); err != nil {
		return 0, 0, err
	}
	var wentOn int
	if err := pool.QueryRow(ctx, `
		SELECT count(*), extract(epoch FROM max(finished_at - ends))::float8, extract(epoch FROM max(finished_at) - min(finished_at))::float8
		FROM leases JOIN saga_instances USING (id)
		WHERE state = 'completed' AND finished_at > ends`).Scan(&wentOn, &longest, &took); err != nil {
		return 0, 0, err
	}
	if wentOn != b.running {
		return 0, 0, fmt.Errorf("%d of %d instances went on after their lease", wentOn, b.running)
	}
	return longest, took, nil
}

// untilCalled waits until n calls are under way.
func untilCalled(ctx context.Context, pool *pgxpool.Pool, n int) error {
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		var calls, late int
		if err := pool.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE state <> 'intent') FROM saga_journal`).Scan(&calls, &late); err != nil {
			return err
		}
		if late > 0 {
			return errors.New("the first calls came to their time before all were under way: this machine is too slow for as many")
		}
		if calls == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// call is a saga of one call, which hangs or has come to its end long since.
func (b *bench) call(hangs bool) *saga.Definition {
	return saga.Define("call", 1,
		saga.Remote("call", func(ctx context.Context, _ *saga.Instance, _ *saga.Call) (any, error) {
			if hangs {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, nil
		}).Query(func(ctx context.Context, _ *saga.Instance, _ *saga.Call) (saga.Answer, error) {
			if hangs {
				<-ctx.Done()
				return saga.NotYet(), ctx.Err()
			}
			return saga.FoundSucceeded(nil), nil
		}).Timeout(b.callTime).Pivot())
}

// hangingEngine is an engine in a process of its own. Its arguments are the database, the time that a call may take, and how
// many calls there are.
func hangingEngine(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("engine: three arguments are needed")
	}
	callTime, err := time.ParseDuration(args[1])
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	var calls int
	if _, err := fmt.Sscan(args[2], &calls); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	pool, err := newPool(ctx, args[0], nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := legs.Say(true); err != nil {
		return err
	}
	b := &bench{plan: plan{callTime: callTime}}
	return whileRunning(ctx, pool, saga.EngineOptions{MaxLanes: calls, MaxCalls: calls}, []*saga.Definition{b.call(true)}, func(*saga.Engine) error {
		<-ctx.Done()
		return nil
	})
}
