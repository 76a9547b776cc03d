package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
)

// steadyPoison measures what poison takes from the other keys at a rate that leaves time: of their messages, how many are
// handled while as many are sent? One in 20 fails for good, each with a key of its own.
func (b *bench) steadyPoison(ctx context.Context) ([]table.Row, error) {
	const perSec = 2000
	var offered, kept []float64
	err := b.withInbox(ctx, "steady", func(pool *pgxpool.Pool) error {
		for n := range b.Rounds {
			sent, handled, err := b.offer(ctx, pool, fmt.Sprint("steady.", n), perSec)
			if err != nil {
				return err
			}
			offered, kept = append(offered, float64(sent)/b.steady.Seconds()), append(kept, float64(handled)/float64(sent))
			fmt.Printf("steady, round %d: of %d messages of other keys %d handled in their time\n", n+1, sent, handled)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []table.Row{
		{Name: "5 % poison at 2,000 msg/s: offered of other keys (msg/s)", Value: table.Median(offered), Format: "%.0f"},
		table.Ratio("5 % poison at 2,000 msg/s: handled of other keys ÷ offered", kept, 0.95),
	}, nil
}

// offer sends messages at a rate that heeds nobody, and returns how many of other keys than poison were sent and handled in a
// span that begins when the consumer has had as long to come to its pace.
func (b *bench) offer(ctx context.Context, pool *pgxpool.Pool, topic string, perSec int) (sent, handled int64, err error) {
	p, err := b.newProducer(ctx, topic, partitions)
	if err != nil {
		return 0, 0, err
	}
	c, err := b.consumer(pool, run{load: load{topic: topic}, group: b.newGroup(), batchSize: 100, handle: refusePoison}, nil)
	if err != nil {
		return 0, 0, err
	}
	running, stop := context.WithCancel(ctx)
	var end error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		end = c.Run(running)
	}()
	defer func() {
		stop()
		<-ended
	}()

	send := time.NewTicker(10 * time.Millisecond)
	defer send.Stop()
	effects := func() (n int64, err error) {
		err = pool.QueryRow(ctx, `SELECT count(*) FROM effects`).Scan(&n)
		return n, err
	}
	var well, wellBefore, before int64
	for start, measured := time.Now(), false; time.Since(start) < 2*b.steady; {
		if !measured && time.Since(start) >= b.steady {
			measured, wellBefore = true, well
			if before, err = effects(); err != nil {
				return 0, 0, err
			}
		}
		for due := int(time.Since(start).Seconds() * float64(perSec)); p.n < due; {
			if p.n%20 == 0 {
				p.send(ctx, fmt.Sprint("poison-", p.n))
				continue
			}
			p.send(ctx, key(p.n))
			well++
		}
		select {
		case <-send.C:
		case <-ended:
			return 0, 0, fmt.Errorf("the consumer ended: %w", end)
		}
	}
	if handled, err = effects(); err != nil {
		return 0, 0, err
	}
	if err := p.close(ctx); err != nil {
		return 0, 0, err
	}
	return well - wellBefore, handled - before, nil
}
