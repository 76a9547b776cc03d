// Package commitack measures from a writer's commit to the broker's ack.
package commitack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/outbox"
)

// Load is what is written, and for how long.
type Load struct {
	Topic   string
	Schema  string // of the outbox
	PerSec  int
	For     time.Duration
	Writers int // most transactions at once
	Payload int // bytes
}

// Result is what came of a load.
type Result struct {
	PerSec float64   // what was really committed
	Millis []float64 // from commit to ack, of each message
}

// Measure runs a relay from the outbox in pool's database to publisher and writes messages at a fixed rate, whatever becomes
// of them: an open loop. Nobody kicks the relay: this is what its polling alone gives.
func Measure(ctx context.Context, load Load, pool *pgxpool.Pool, publisher outbox.Publisher) (Result, error) {
	watch := &stopwatch{Publisher: publisher}
	watch.forget()
	relay, err := outbox.NewRelay(pool, watch, outbox.RelayOptions{Schema: load.Schema})
	if err != nil {
		return Result{}, err
	}
	relayCtx, stopRelay := context.WithCancel(ctx)
	defer stopRelay()
	var relaying errgroup.Group
	relaying.Go(func() error { return relay.Run(relayCtx) })
	// The first messages pay for the start of the relay and of the connections, and for the topic's first segments.
	first := load
	first.For = 2 * time.Second
	if err := first.write(ctx, pool, watch); err != nil {
		return Result{}, err
	}
	if len(watch.wait(10*time.Second)) == 0 {
		return Result{}, errors.New("latency: the relay acknowledges nothing")
	}
	watch.forget()
	began := time.Now()
	err = load.write(ctx, pool, watch)
	took := time.Since(began)
	latencies := watch.wait(10 * time.Second)
	stopRelay()
	if err := errors.Join(err, relaying.Wait()); err != nil {
		return Result{}, err
	}
	if len(latencies) == 0 {
		return Result{}, errors.New("latency: nothing was acknowledged")
	}
	return Result{PerSec: float64(len(latencies)) / took.Seconds(), Millis: latencies}, nil
}

func (l Load) write(ctx context.Context, pool *pgxpool.Pool, watch *stopwatch) error {
	writers, ctx := errgroup.WithContext(ctx)
	writers.SetLimit(l.Writers)
	began := time.Now()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for n := range int(l.For.Seconds() * float64(l.PerSec)) {
		// By the clock and not by a ticker, which drops what it is late for.
		if wait := time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(l.PerSec))); wait > 0 {
			tick.Reset(wait)
			select {
			case <-ctx.Done():
				return writers.Wait()
			case <-tick.C:
			}
		}
		writers.Go(func() error {
			id := uuid.Must(uuid.NewV7())
			msg := outbox.Message{ID: id, Topic: l.Topic, Key: fmt.Sprintf("user-%d", n%1000), Type: "bench.written.v1", Payload: make([]byte, l.Payload)}
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				return outbox.Writer{Schema: l.Schema}.Write(ctx, tx, msg)
			})
			watch.commit(id, time.Now())
			return err
		})
	}
	return writers.Wait()
}

// stopwatch is a publisher that notes when each message was acknowledged.
type stopwatch struct {
	outbox.Publisher
	mu               sync.Mutex
	committed, acked map[uuid.UUID]time.Time
}

func (s *stopwatch) Publish(ctx context.Context, page []outbox.Record) []error {
	errs := s.Publisher.Publish(ctx, page)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, record := range page {
		if errs == nil || errs[i] == nil {
			s.acked[record.ID] = now
		}
	}
	return errs
}

func (s *stopwatch) commit(id uuid.UUID, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed[id] = at
}

// forget begins anew.
func (s *stopwatch) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed, s.acked = map[uuid.UUID]time.Time{}, map[uuid.UUID]time.Time{}
}

// wait returns the latencies in milliseconds once everything is acknowledged, or what there is after limit.
func (s *stopwatch) wait(limit time.Duration) []float64 {
	for deadline := time.Now().Add(limit); ; {
		s.mu.Lock()
		done := len(s.acked) >= len(s.committed)
		if done || time.Now().After(deadline) {
			defer s.mu.Unlock()
			var latencies []float64
			for id, acked := range s.acked {
				if committed, ok := s.committed[id]; ok {
					latencies = append(latencies, max(0, acked.Sub(committed).Seconds()*1000))
				}
			}
			return latencies
		}
		s.mu.Unlock()
		<-time.After(10 * time.Millisecond)
	}
}
