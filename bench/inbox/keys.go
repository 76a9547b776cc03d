package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/inbox"
)

// slowKey measures a partition of a thousand keys of which one takes 100 ms for each message: how fast are the others?
func (b *bench) slowKey(ctx context.Context) ([]table.Row, error) {
	const keys, slow = 1000, "user-0"
	var rate, ours, theirs []float64
	err := b.withInbox(ctx, "slow", func(pool *pgxpool.Pool) error {
		l, err := b.produce(ctx, "slow", 1, b.messages, func(i int) string { return fmt.Sprintf("user-%d", i%keys) })
		if err != nil {
			return err
		}
		for n := range b.Rounds {
			full, err := b.others(ctx, pool, l, "", b.consume)
			if err != nil {
				return err
			}
			inLanes, err := b.others(ctx, pool, l, slow, b.consume)
			if err != nil {
				return err
			}
			inOrder, err := b.others(ctx, pool, l, slow, b.serial)
			if err != nil {
				return err
			}
			rate, ours, theirs = append(rate, inLanes), append(ours, inLanes/full), append(theirs, inOrder/full)
			fmt.Printf("slow, round %d: no slow key %.0f msg/s, one %.0f, partition in order %.0f\n", n+1, full, inLanes, inOrder)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{
		{Name: "one slow key of 1,000 in a partition: the others (msg/s)", Value: table.Median(rate), Format: "%.0f"},
		table.Ratio("one slow key of 1,000: the others ÷ without it", ours, 0.9),
		{Name: "the same in a consumer that works a partition in its order", Value: table.Median(theirs), Format: "%.2f"},
	}, nil
}

// others returns how many messages of other keys than slow are handled in a second.
func (b *bench) others(ctx context.Context, pool *pgxpool.Pool, l load, slow string,
	consume func(context.Context, *pgxpool.Pool, run) (float64, error),
) (float64, error) {
	var w watch
	var handled atomic.Int64
	_, err := consume(ctx, pool, run{load: l, batchSize: 100, handle: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Key == slow {
			<-time.After(100 * time.Millisecond)
		} else {
			handled.Add(1)
			w.tick()
		}
		return insert(ctx, tx, m)
	}})
	if err != nil {
		return 0, err
	}
	return w.perSec(int(handled.Load()))
}

// heldKeys measures the live path beside held keys that are not due.
func (b *bench) heldKeys(ctx context.Context) ([]table.Row, error) {
	var worse []float64
	err := b.withInbox(ctx, "held", func(pool *pgxpool.Pool) error {
		l, err := b.produce(ctx, "held", partitions, b.messages, key)
		if err != nil {
			return err
		}
		for n := range b.Rounds {
			none, err := b.consume(ctx, pool, run{load: l, batchSize: 100, handle: insert})
			if err != nil {
				return err
			}
			group := b.newGroup()
			if err := fillHeld(ctx, pool, group, l.topic, b.held); err != nil {
				return err
			}
			held, err := b.consume(ctx, pool, run{load: l, group: group, batchSize: 100, handle: insert})
			if err != nil {
				return err
			}
			worse = append(worse, none/held)
			fmt.Printf("held, round %d: none held %.0f msg/s, %d keys %.0f\n", n+1, none, b.held, held)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	times := table.Median(worse)
	return []table.Row{
		{Name: fmt.Sprintf("%d held keys: times slower for the others", b.held), Value: times, Format: "%.2f", Aim: "≤ 1.2", Met: times <= 1.2},
	}, nil
}

// poison measures a backlog of which a part fails for good, each such message with a key of its own.
func (b *bench) poison(ctx context.Context) ([]table.Row, error) {
	shares := []struct {
		percent int
		least   float64
	}{{0, 0}, {1, 0.5}, {5, 0.3}}
	ours, theirs := make([][]float64, len(shares)), make([][]float64, len(shares))
	err := b.withInbox(ctx, "poison", func(pool *pgxpool.Pool) error {
		loads, short := make([]load, len(shares)), make([]load, len(shares)) // a short one for who works them off one by one
		for i, s := range shares {
			poisoned := func(n int) string {
				if n%100 < s.percent {
					return fmt.Sprint("poison-", n)
				}
				return key(n)
			}
			var err error
			if loads[i], err = b.produce(ctx, fmt.Sprint("poison.", s.percent), partitions, b.messages, poisoned); err != nil {
				return err
			}
			if short[i], err = b.produce(ctx, fmt.Sprint("poison.short.", s.percent), partitions, b.few, poisoned); err != nil {
				return err
			}
		}
		for n := range b.Rounds {
			var clean, cleanSerial float64
			for i, s := range shares {
				figure, err := b.consume(ctx, pool, run{load: loads[i], batchSize: 100, handle: refusePoison})
				if err != nil {
					return err
				}
				serial, err := b.serial(ctx, pool, run{load: short[i], batchSize: 100, handle: refusePoison})
				if err != nil {
					return err
				}
				if s.percent == 0 {
					clean, cleanSerial = figure, serial
				}
				ours[i], theirs[i] = append(ours[i], figure/clean), append(theirs[i], serial/cleanSerial)
				fmt.Printf("poison, round %d: %d %% poison %.0f msg/s, one by one %.0f\n", n+1, s.percent, figure, serial)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var rows []table.Row
	for i, s := range shares[1:] {
		rows = append(rows,
			table.Ratio(fmt.Sprintf("%d %% poison ÷ clean", s.percent), ours[i+1], s.least),
			table.Row{Name: fmt.Sprintf("%d %% poison ÷ clean, failed batches one by one", s.percent), Value: table.Median(theirs[i+1]), Format: "%.2f"})
	}
	return rows, nil
}

func refusePoison(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if strings.HasPrefix(m.Key, "poison") {
		return inbox.Permanent(errors.New("not valid"))
	}
	return insert(ctx, tx, m)
}
