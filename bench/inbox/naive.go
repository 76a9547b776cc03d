package main

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/inbox"
)

// serial is the consumer that is usually written: each partition is worked in its order, a hundred records in one
// transaction with their dedup rows, and when that fails one record after the other, each in a transaction of its own;
// what fails then goes to a table of dead letters.
func (b *bench) serial(ctx context.Context, pool *pgxpool.Pool, r run) (perSec float64, err error) {
	r.group = b.newGroup()
	if _, err := pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS dead_letters (id uuid, payload bytea)`); err != nil {
		return 0, err
	}
	var w watch
	err = b.until(ctx, r.group, r.load, func(ctx context.Context) error {
		client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ConsumerGroup(r.group), kgo.ConsumeTopics(r.load.topic),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
		if err != nil {
			return err
		}
		defer client.CloseAllowingRebalance()
		for ctx.Err() == nil {
			fetches := client.PollRecords(ctx, 100*partitions)
			work, working := errgroup.WithContext(ctx)
			work.SetLimit(workers)
			fetches.EachPartition(func(p kgo.FetchTopicPartition) {
				work.Go(func() error {
					for from := 0; from < len(p.Records); from += 100 {
						if err := r.serialBatch(working, pool, p.Records[from:min(from+100, len(p.Records))]); err != nil {
							return err
						}
						w.tick()
					}
					return nil
				})
			})
			if err := work.Wait(); err != nil {
				return err
			}
			if err := client.CommitRecords(ctx, fetches.Records()...); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return w.perSec(r.load.n)
}

func (r run) serialBatch(ctx context.Context, pool *pgxpool.Pool, records []*kgo.Record) error {
	if r.serialApply(ctx, pool, records) == nil {
		return nil
	}
	for i := range records {
		err := r.serialApply(ctx, pool, records[i:i+1])
		if err != nil {
			_, err = pool.Exec(ctx, `INSERT INTO dead_letters VALUES ($1::text::uuid, $2)`, idHeader(records[i]), records[i].Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r run) serialApply(ctx context.Context, pool *pgxpool.Pool, records []*kgo.Record) error {
	ids := make([]string, len(records))
	for i, rec := range records {
		ids[i] = idHeader(rec)
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
			SELECT $3::smallint, $1, id::uuid, '', 'done' FROM unnest($2::text[]) AS id ORDER BY id
			ON CONFLICT DO NOTHING`, r.group, ids, today())
		if err != nil {
			return err
		}
		for i, rec := range records {
			m := inbox.Message{Topic: rec.Topic, Key: string(rec.Key), ID: uuid.MustParse(ids[i]), Payload: rec.Value}
			if err := r.handle(ctx, tx, m); err != nil {
				return err
			}
		}
		return nil
	})
}

func idHeader(rec *kgo.Record) string {
	for _, h := range rec.Headers {
		if h.Key == "ce_id" {
			return string(h.Value)
		}
	}
	return ""
}

// today is the slot that ids of now belong to.
func today() int16 { return int16(time.Now().UnixMilli() / (24 * time.Hour).Milliseconds() % 32) }
