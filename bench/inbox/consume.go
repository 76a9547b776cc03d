package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// workers is the number of transactions that are open at once in each run.
const workers = 8

// run is one consumption of a load.
type run struct {
	load      load
	group     string // default: a new one
	batchSize int
	handle    inbox.Handler // or handleAll
	handleAll inbox.BatchHandler
}

// consume runs a consumer until everything is consumed, and returns messages a second from the first committed batch to
// the last.
func (b *bench) consume(ctx context.Context, pool *pgxpool.Pool, r run) (perSec float64, err error) {
	if r.group == "" {
		r.group = b.newGroup()
	}
	var w watch
	c, err := b.consumer(pool, r, w.tick)
	if err != nil {
		return 0, err
	}
	if err := b.until(ctx, r.group, r.load, c.Run); err != nil {
		return 0, err
	}
	return w.perSec(r.load.n)
}

func (b *bench) consumer(pool *pgxpool.Pool, r run, afterBatch func()) (*inbox.Consumer, error) {
	return inbox.NewConsumer(pool, r.group, []inbox.Route{
		{Topic: r.load.topic, Type: messageType, Handle: r.handle, HandleBatch: r.handleAll},
	}, inbox.Options{
		Kafka: []kgo.Opt{kgo.SeedBrokers(b.brokers...), kgo.MetadataMinAge(50 * time.Millisecond)}, BatchSize: r.batchSize, Workers: workers, CommitEvery: 50 * time.Millisecond,
		AfterBatch: afterBatch,
	})
}

// until calls consume until group has committed the whole load.
func (b *bench) until(ctx context.Context, group string, l load, consume func(context.Context) error) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		return err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- consume(running) }()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for b.committed(ctx, adm, group, l) < l.n {
		select {
		case <-look.C:
		case err := <-ended:
			return errors.Join(err, ctx.Err(), errors.New("the consumer ended before it had consumed everything"))
		}
	}
	stop()
	return <-ended
}

func (b *bench) newGroup() string {
	b.groups++
	return fmt.Sprint("bench-", b.groups)
}

// forget has a group begin at the beginning again. Its inbox remembers.
func (b *bench) forget(ctx context.Context, group string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = kadm.NewClient(client).DeleteGroup(ctx, group)
	return err
}

// watch notes when the first and the last tick were.
type watch struct {
	mu          sync.Mutex
	first, last time.Time
}

func (w *watch) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = time.Now()
	if w.first.IsZero() {
		w.first = w.last
	}
}

func (w *watch) perSec(n int) (float64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.last.After(w.first) {
		return 0, fmt.Errorf("%d messages came in one batch: too few to measure", n)
	}
	return float64(n) / w.last.Sub(w.first).Seconds(), nil
}

// insert is the effect of one message: one row.
func insert(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (key, id) VALUES ($1, $2::text::uuid)`, m.Key, m.ID.String())
	return err
}

// insertAll is the effects of many messages in one statement.
func insertAll(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
	keys, ids := make([]string, len(msgs)), make([]string, len(msgs))
	for i, m := range msgs {
		keys[i], ids[i] = m.Key, m.ID.String()
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO effects (key, id)
		SELECT key, id::uuid FROM unnest($1::text[], $2::text[]) AS m (key, id)`, keys, ids)
	return err
}
