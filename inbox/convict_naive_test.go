package inbox_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// byPlace knows records by where they lie.
func byPlace(ctx context.Context, x *trial, p *process, group string) {
	if _, err := p.pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS places (place text PRIMARY KEY)`); err != nil {
		x.Error(err)
		return
	}
	x.oneByOne(ctx, p, group, func(m inbox.Message) error {
		return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `INSERT INTO places VALUES ($1) ON CONFLICT DO NOTHING`,
				fmt.Sprintf("%s:%d:%d", m.Topic, m.Partition, m.Offset))
			if err != nil || tag.RowsAffected() == 0 {
				return err
			}
			return x.handle(ctx, tx, m)
		})
	})
}

// rowBefore marks the message as processed, and then processes it.
func rowBefore(ctx context.Context, x *trial, p *process, group string) {
	x.oneByOne(ctx, p, group, func(m inbox.Message) error {
		fresh, err := remember(ctx, p.pool, m)
		if err != nil || !fresh {
			return err
		}
		return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error { return x.handle(ctx, tx, m) })
	})
}

// rowBehind processes the message, and then marks it as processed.
func rowBehind(ctx context.Context, x *trial, p *process, group string) {
	x.oneByOne(ctx, p, group, func(m inbox.Message) error {
		var known bool
		if err := p.pool.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM processed_messages WHERE event_id = $1::text::uuid)`, m.ID.String()).Scan(&known); err != nil || known {
			return err
		}
		if err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error { return x.handle(ctx, tx, m) }); err != nil {
			return err
		}
		_, err := remember(ctx, p.pool, m)
		return err
	})
}

// setNX marks the message in Redis, and then processes it.
func setNX(ctx context.Context, x *trial, p *process, group string) {
	x.redisOnce.Do(func() { x.redis = miniredis.RunT(x.T) })
	client := redis.NewClient(&redis.Options{Addr: x.redis.Addr()})
	defer client.Close()
	x.oneByOne(ctx, p, group, func(m inbox.Message) error {
		fresh, err := client.SetNX(ctx, m.ID.String(), "processed", 0).Result()
		if err != nil || !fresh {
			return err
		}
		return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error { return x.handle(ctx, tx, m) })
	})
}

// highestFinished works all records at once and commits the highest offset of a partition that is done.
func highestFinished(ctx context.Context, x *trial, p *process, group string) {
	var mu sync.Mutex
	highest := map[string]map[int32]kgo.EpochOffset{topic: {}}
	var workers sync.WaitGroup
	defer workers.Wait()
	x.poll(ctx, p, group, func(client *kgo.Client, records []*kgo.Record) error {
		for _, rec := range records {
			workers.Go(func() {
				tx, err := p.pool.Begin(ctx)
				if err != nil {
					return
				}
				defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit this does nothing
				if fresh, err := remember(ctx, tx, message(rec)); err != nil || fresh && x.handle(ctx, tx, message(rec)) != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if tx.Commit(ctx) != nil {
					return
				}
				at := highest[topic][rec.Partition]
				at.Epoch, at.Offset = rec.LeaderEpoch, max(at.Offset, rec.Offset+1)
				highest[topic][rec.Partition] = at
				client.CommitOffsetsSync(ctx, highest, nil)
			})
		}
		return nil
	})
}

// produceDeadLetter sends what fails to a topic, logs when it cannot, and goes on.
func produceDeadLetter(ctx context.Context, x *trial, p *process, group string) {
	x.poll(ctx, p, group, func(client *kgo.Client, records []*kgo.Record) error {
		for _, rec := range records {
			err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
				if fresh, err := remember(ctx, tx, message(rec)); err != nil || !fresh {
					return err
				}
				return x.handle(ctx, tx, message(rec))
			})
			if err != nil {
				dead := &kgo.Record{Topic: missingTopic, Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
				if err := client.ProduceSync(ctx, dead).FirstErr(); err != nil {
					x.Logf("dead letter not sent: %v", err)
				}
			}
			if err := client.CommitRecords(ctx, rec); err != nil {
				return err
			}
		}
		return nil
	})
}

// oneStatement is package inbox's protocol with the dedup rows and the look at the holds in one statement.
func oneStatement(ctx context.Context, x *trial, p *process, group string) {
	x.poll(ctx, p, group, func(client *kgo.Client, records []*kgo.Record) error {
		if len(records) == 0 {
			return nil
		}
		if err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error { return oneBatch(ctx, x, tx, records) }); err != nil {
			return err
		}
		return client.CommitRecords(ctx, records...)
	})
}

func oneBatch(ctx context.Context, x *trial, tx pgx.Tx, records []*kgo.Record) error {
	var ids, keys []string
	for _, rec := range records {
		ids, keys = append(ids, message(rec).ID.String()), append(keys, string(rec.Key))
	}
	rows, _ := tx.Query(ctx, `
		WITH fresh AS (
			INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
			SELECT 0, 'test', id::uuid, '', 'done' FROM unnest($1::text[]) AS id ORDER BY id
			ON CONFLICT DO NOTHING
			RETURNING event_id
		), held AS (
			SELECT key FROM inbox_holds WHERE key = ANY($2::text[]) FOR KEY SHARE
		)
		SELECT m.id::uuid, EXISTS (SELECT FROM held WHERE held.key = m.key)
		FROM unnest($1::text[], $2::text[]) AS m (id, key)
		JOIN fresh ON fresh.event_id = m.id::uuid`, ids, keys) // ForEachRow reports the error
	held := map[uuid.UUID]bool{}
	var id uuid.UUID
	var behind bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &behind}, func() error { held[id] = behind; return nil }); err != nil {
		return err
	}
	for _, rec := range records {
		m := message(rec)
		behind, fresh := held[m.ID]
		if !fresh {
			continue
		}
		if !behind {
			err := x.handle(ctx, tx, m)
			if err != nil {
				err = x.handle(ctx, tx, m) // once more
			}
			if err == nil {
				continue
			}
		}
		if err := park(ctx, tx, m); err != nil {
			return err
		}
	}
	return nil
}

// park puts a message into the line of its key.
func park(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if _, err := tx.Exec(ctx, `UPDATE processed_messages SET state = 'parked' WHERE event_id = $1::text::uuid`, m.ID.String()); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `
		INSERT INTO inbox_holds (consumer_group, topic, key, state, parked, type, next_at)
		VALUES ('test', 'orders', $1, 'dead', 1, '', now())
		ON CONFLICT (consumer_group, topic, key) DO UPDATE SET parked = inbox_holds.parked + 1`, m.Key); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO parked_messages (consumer_group, topic, key, hold_key, kafka_partition, kafka_offset, event_id, type, record_time,
		                             headers, payload, state)
		VALUES ('test', 'orders', $1, $1, $2, $3, $4::text::uuid, '', now(), '[]', $5, 'held')`,
		m.Key, m.Partition, m.Offset, m.ID.String(), m.Payload)
	return err
}
