package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/outbox"
)

// latencyLeg writes messages at a fixed rate, whatever becomes of them, and measures from each writer's commit to the
// broker's ack. Nobody kicks the relay: this is what its polling alone gives.
func latencyLeg(ctx context.Context, p plan, server *postgres) ([]result, error) {
	fmt.Printf("latency: %d messages a second for %v\n", p.perSec, p.latency)
	url, err := server.database(ctx, "latency")
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(12, "orders"))
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(cluster.ListenAddrs()...))...)
	if err != nil {
		return nil, err
	}
	defer client.Close()

	watch := &stopwatch{Publisher: outbox.NewKafkaPublisher(client), committed: map[uuid.UUID]time.Time{}, acked: map[uuid.UUID]time.Time{}}
	relay, err := outbox.NewRelay(pool, watch, outbox.RelayOptions{Schema: "orders"})
	if err != nil {
		return nil, err
	}
	relayCtx, stopRelay := context.WithCancel(ctx)
	var relaying errgroup.Group
	relaying.Go(func() error { return relay.Run(relayCtx) })
	err = writeAtRate(ctx, p, pool, watch)
	latencies := watch.wait(10 * time.Second)
	stopRelay()
	if err := relaying.Wait(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if len(latencies) == 0 {
		return nil, fmt.Errorf("latency: nothing was acknowledged")
	}
	p50, p99 := quantile(latencies, 0.50), quantile(latencies, 0.99)
	rate := fmt.Sprintf("commit → ack at %d/s", p.perSec)
	return []result{
		{name: rate + ", p50 (ms)", value: p50, format: "%.1f"},
		{name: rate + ", p99 (ms)", value: p99, format: "%.1f", aim: "≤ 25", met: p99 <= 25},
	}, nil
}

func writeAtRate(ctx context.Context, p plan, pool *pgxpool.Pool, watch *stopwatch) error {
	writers, ctx := errgroup.WithContext(ctx)
	writers.SetLimit(8)
	ticker := time.NewTicker(time.Second / time.Duration(p.perSec))
	defer ticker.Stop()
	for n := range int(p.latency.Seconds() * float64(p.perSec)) {
		select {
		case <-ctx.Done():
			return writers.Wait()
		case <-ticker.C:
		}
		writers.Go(func() error {
			id := uuid.Must(uuid.NewV7())
			msg := outbox.Message{ID: id, Topic: "orders", Key: fmt.Sprintf("user-%d", n%1000), Type: "bench.written.v1", Payload: make([]byte, 350)}
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				return outbox.Writer{Schema: "orders"}.Write(ctx, tx, msg)
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

func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
