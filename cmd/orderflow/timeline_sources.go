package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/saga"
)

// readKafka looks for the order's messages in every topic. They are all under the user's key, so one partition of each
// topic is enough.
func (t *trail) readKafka(ctx context.Context, brokers []string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kafka.Options(brokers, nil)...)
	if err != nil {
		return fmt.Errorf("set up the Kafka client: %w", err)
	}
	defer client.Close()
	if err := kafka.Ping(ctx, client, brokers); err != nil {
		return err
	}
	admin := kadm.NewClient(client)
	starts, err := admin.ListOffsetsAfterMilli(ctx, t.since.UnixMilli(), event.Topics()...)
	if err != nil {
		return fmt.Errorf("look for the order's records: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, event.Topics()...)
	if err != nil {
		return fmt.Errorf("look for the end of the topics: %w", err)
	}
	left := map[string]int64{} // topic → end offset, until reached
	from := map[string]map[int32]kgo.Offset{}
	for _, topic := range event.Topics() {
		p := partitionOf(topic, t.user)
		start, ok := starts.Lookup(topic, p)
		end, also := ends.Lookup(topic, p)
		if ok && also && start.Err == nil && start.Offset >= 0 && start.Offset < end.Offset {
			from[topic] = map[int32]kgo.Offset{p: kgo.NewOffset().At(start.Offset)}
			left[topic] = end.Offset
		}
	}
	client.AddConsumePartitions(from)
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read the order's records: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			t.addRecord(r)
			if r.Offset+1 >= left[r.Topic] {
				delete(left, r.Topic)
			}
		})
	}
	return nil
}

// partitionOf says where Kafka's usual partitioner puts a key.
func partitionOf(topic, key string) int32 {
	return int32(kgo.StickyKeyPartitioner(nil).ForTopic(topic).Partition(&kgo.Record{Key: []byte(key)}, event.Partitions))
}

func (t *trail) addRecord(r *kgo.Record) {
	headers := map[string]string{}
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	if headers["ce_subject"] != t.order.String() {
		return
	}
	id, err := uuid.Parse(headers["ce_id"])
	if err != nil {
		return
	}
	at := r.Timestamp
	if written, err := time.Parse(time.RFC3339Nano, headers["ce_time"]); err == nil {
		if written.After(at) {
			at = written // Kafka keeps milliseconds
		}
		if _, again := t.types[id]; !again {
			t.add(written, "outbox", headers["ce_type"]+" written", "message %s, outbox of %s, seq %s", id, headers["ce_source"], headers["outbox-seq"])
		}
	}
	t.types[id] = headers["ce_type"]
	t.add(at, "kafka", headers["ce_type"]+" published", "topic %s, partition %d, offset %d", r.Topic, r.Partition, r.Offset)
}

// readDatabase reads what the services' schemas say of the order.
func (t *trail) readDatabase(ctx context.Context, ownerURL string, api apiclient.Timeline) error {
	for _, schema := range []string{"orders", "email", "warehouse"} {
		pool, err := openSchema(ctx, ownerURL, schema)
		if err != nil {
			return err
		}
		err = errors.Join(t.readOutbox(ctx, pool, schema), t.readInbox(ctx, pool))
		switch schema {
		case "orders":
			err = errors.Join(err, t.readSaga(ctx, pool, api))
		case "email":
			err = errors.Join(err, t.readEmails(ctx, pool))
		case "warehouse":
			err = errors.Join(err, t.readShipments(ctx, pool))
		}
		pool.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// readOutbox adds the messages that are written and not in Kafka yet.
func (t *trail) readOutbox(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	rows, _ := pool.Query(ctx, `
		SELECT seq, id, type, topic, created_at
		FROM outbox
		WHERE created_at >= $1 AND headers ->> 'ce_subject' = $2
		ORDER BY seq`, t.since, t.order.String()) // ForEachRow reports the error
	var (
		seq         int64
		id          uuid.UUID
		kind, topic string
		at          time.Time
	)
	_, err := pgx.ForEachRow(rows, []any{&seq, &id, &kind, &topic, &at}, func() error {
		if _, published := t.types[id]; !published {
			t.types[id] = kind
			t.add(at, "outbox", kind+" written", "message %s, outbox of /%s, seq %d, not seen in %s", id, schema, seq, topic)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the outbox of %s: %w", schema, err)
	}
	return nil
}

// readInbox adds what a consumer group made of the order's messages.
func (t *trail) readInbox(ctx context.Context, pool *pgxpool.Pool) error {
	ids := make([]uuid.UUID, 0, len(t.types))
	for id := range t.types {
		ids = append(ids, id)
	}
	rows, _ := pool.Query(ctx, `
		SELECT m.consumer_group, m.event_id, m.state, m.processed_at, coalesce(p.state || ': ' || p.error, '')
		FROM processed_messages m
		LEFT JOIN parked_messages p USING (consumer_group, event_id)
		WHERE m.event_id = ANY($1)`, ids) // ForEachRow reports the error
	var (
		group, state, parked string
		id                   uuid.UUID
		at                   time.Time
	)
	_, err := pgx.ForEachRow(rows, []any{&group, &id, &state, &at, &parked}, func() error {
		t.add(at, group, t.types[id]+" "+state, "%s", parked)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what became of the messages: %w", err)
	}
	return nil
}

func (t *trail) readSaga(ctx context.Context, pool *pgxpool.Pool, api apiclient.Timeline) error {
	for _, e := range api.Entries {
		if e.Source == "saga" {
			return nil // the api has told it
		}
	}
	h, err := saga.Load(ctx, pool, t.order)
	if errors.Is(err, saga.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range h.Journal {
		what := e.Step
		if e.Undo {
			what = "undo " + what
		}
		if e.OutcomeAt.IsZero() {
			t.add(e.IntentAt, "saga", what+": "+string(e.State), "attempt %d %s", e.Attempt, e.Error)
			continue
		}
		if e.OutcomeAt.Sub(e.IntentAt) > time.Millisecond {
			t.add(e.IntentAt, "saga", what+": begun", "")
		}
		t.add(e.OutcomeAt, "saga", what+": "+string(e.State), "attempt %d %s", e.Attempt, e.Error)
	}
	for _, a := range h.Audit {
		t.add(a.At, "saga", a.Action+" by "+a.By, "%s", a.Reason)
	}
	return nil
}

func (t *trail) readEmails(ctx context.Context, pool *pgxpool.Pool) error {
	rows, _ := pool.Query(ctx, `
		SELECT kind, state, attempts, coalesce(error, ''), created_at, updated_at, sent_at
		FROM emails
		WHERE order_id = $1`, t.order) // ForEachRow reports the error
	var (
		kind, state, refusal string
		attempts             int
		queued, tried        time.Time
		sent                 *time.Time
	)
	_, err := pgx.ForEachRow(rows, []any{&kind, &state, &attempts, &refusal, &queued, &tried, &sent}, func() error {
		t.add(queued, "email", kind+" queued", "")
		switch {
		case sent != nil:
			t.add(*sent, "email", kind+" sent", "attempt %d", attempts)
		case refusal != "":
			t.add(tried, "email", kind+" not sent, now "+state, "attempt %d: %s", attempts, refusal)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the order's emails: %w", err)
	}
	return nil
}

func (t *trail) readShipments(ctx context.Context, pool *pgxpool.Pool) error {
	rows, _ := pool.Query(ctx, `
		SELECT s.id, s.created_at, s.shipped_at, (SELECT count(*) FROM shipment_items i WHERE i.shipment_id = s.id)
		FROM shipments s
		WHERE s.order_id = $1`, t.order) // ForEachRow reports the error
	var (
		id      uuid.UUID
		created time.Time
		shipped *time.Time
		lines   int
	)
	_, err := pgx.ForEachRow(rows, []any{&id, &created, &shipped, &lines}, func() error {
		t.add(created, "warehouse", "shipment created", "shipment %s, %d lines to pick", id, lines)
		if shipped != nil {
			if shipped.Before(created) {
				*shipped = created // decided before the row was written, and shown after it
			}
			t.add(*shipped, "warehouse", "shipped", "")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the order's shipment: %w", err)
	}
	return nil
}
