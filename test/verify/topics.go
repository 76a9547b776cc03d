package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// readers says which group of which schema reads which types, as the services are meant to.
var readers = []struct {
	group, schema, topic string
	types                []string
}{
	{"order", "orders", "orders", []string{"order.placed.v1", "order.cancel_requested.v1"}},
	{"order", "orders", "shipments", []string{"shipment.created.v1"}},
	{"order", "orders", "payments", []string{"payment.reported.v1"}},
	{"email", "email", "orders.completed", []string{"order.completed.v1"}},
	{"email", "email", "orders.failed", []string{"order.failed.v1"}},
	{"email", "email", "shipments", []string{"shipment.created.v1"}},
	{"warehouse", "warehouse", "orders.completed", []string{"order.completed.v1"}},
}

// publishers says which schema's outbox fills which topics.
var publishers = []struct {
	schema string
	topics []string
}{
	{"orders", []string{"orders", "orders.completed", "orders.failed", "payments"}},
	{"warehouse", []string{"shipments"}},
}

// topics checks what lies in Kafka: I7, I8, I9 and I10.
func topics(ctx context.Context, t Target) ([]Violation, error) {
	var found []Violation
	records := map[string][]*kgo.Record{}
	for _, p := range publishers {
		for _, topic := range p.topics {
			var err error
			if records[topic], err = readAll(ctx, t.Kafka, topic); err != nil {
				return nil, err
			}
			found = append(found, keys(topic, records[topic])...)
			missing, err := unpublished(ctx, t, p.schema, topic, records[topic])
			if err != nil {
				return nil, err
			}
			found = append(found, report("I7", "a message of "+p.schema+".outbox that is not in topic "+topic, missing)...)
		}
	}
	found = append(found, sequence(records["orders"])...)
	for _, r := range readers {
		without, err := fateless(ctx, t, r.schema, r.group, r.types, records[r.topic])
		if err != nil {
			return nil, err
		}
		found = append(found, report("I10", "a message of topic "+r.topic+" without a fate in group "+r.group, without)...)
	}
	return found, nil
}

// readAll reads a topic from its beginning to its end as it is now.
func readAll(ctx context.Context, client *kgo.Client, topic string) ([]*kgo.Record, error) {
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("find the end of topic %s: %w", topic, err)
	}
	left := 0
	offsets := map[int32]kgo.Offset{}
	starts, err := kadm.NewClient(client).ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("find the start of topic %s: %w", topic, err)
	}
	ends.Each(func(o kadm.ListedOffset) {
		start, _ := starts.Lookup(topic, o.Partition)
		if n := int(o.Offset - start.Offset); n > 0 {
			left += n
			offsets[o.Partition] = kgo.NewOffset().At(start.Offset)
		}
	})
	if left == 0 {
		return nil, nil
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: offsets})
	defer client.RemoveConsumePartitions(map[string][]int32{topic: partitions(offsets)})
	var records []*kgo.Record
	for len(records) < left {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read topic %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Topic == topic {
				records = append(records, r)
			}
		})
	}
	return records, nil
}

func partitions(offsets map[int32]kgo.Offset) []int32 {
	var list []int32
	for p := range offsets {
		list = append(list, p)
	}
	return list
}

// body is what every payload of ours has.
type body struct {
	OrderID string `json:"order_id"`
	UserID  string `json:"user_id"`
	UserSeq int64  `json:"user_seq"`
}

// keys checks I8: the key is the user, and one user is in one partition only.
func keys(topic string, records []*kgo.Record) []Violation {
	var wrong []string
	partition := map[string]int32{}
	for _, r := range records {
		var b body
		if header(r, "ce_type") == "" || json.Unmarshal(r.Value, &b) != nil || b.UserID == "" {
			continue // not ours: a test put it there
		}
		if string(r.Key) != b.UserID {
			wrong = append(wrong, fmt.Sprintf("partition %d offset %d", r.Partition, r.Offset))
		}
		if before, seen := partition[string(r.Key)]; seen && before != r.Partition {
			wrong = append(wrong, fmt.Sprintf("partition %d offset %d, earlier in partition %d", r.Partition, r.Offset, before))
		}
		partition[string(r.Key)] = r.Partition
	}
	return report("I8", "a record of topic "+topic+" that is not where its user's are", wrong)
}

// sequence checks I9: per user, first appearances are 1, 2, 3 …
func sequence(records []*kgo.Record) []Violation {
	next := map[string]int64{}
	seen := map[string]bool{}
	var wrong []string
	for _, r := range byOffset(records) {
		var b body
		if header(r, "ce_type") != "order.placed.v1" || seen[header(r, "ce_id")] || json.Unmarshal(r.Value, &b) != nil {
			continue
		}
		seen[header(r, "ce_id")] = true
		next[b.UserID]++
		if b.UserSeq != next[b.UserID] {
			wrong = append(wrong, fmt.Sprintf("partition %d offset %d: user_seq %d, want %d", r.Partition, r.Offset, b.UserSeq, next[b.UserID]))
			next[b.UserID] = b.UserSeq
		}
	}
	return report("I9", "a user's orders out of order in topic orders", wrong)
}

func byOffset(records []*kgo.Record) []*kgo.Record {
	sorted := slices.Clone(records)
	slices.SortFunc(sorted, func(a, b *kgo.Record) int {
		if a.Partition != b.Partition {
			return int(a.Partition - b.Partition)
		}
		return int(a.Offset - b.Offset)
	})
	return sorted
}

// unpublished checks I7: every message of an outbox is in its topic, with the same payload.
func unpublished(ctx context.Context, t Target, schema, topic string, records []*kgo.Record) ([]string, error) {
	published := map[string][]byte{}
	for _, r := range records {
		published[header(r, "ce_id")] = r.Value
	}
	rows, _ := t.DB.Query(ctx, `SELECT id::text, payload FROM `+pgx.Identifier{schema, "outbox"}.Sanitize()+` WHERE topic = $1`, topic)
	var missing []string
	var id string
	var payload []byte
	_, err := pgx.ForEachRow(rows, []any{&id, &payload}, func() error {
		if value, ok := published[id]; !ok || !bytes.Equal(value, payload) {
			missing = append(missing, "message "+id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the outbox of %s: %w", schema, err)
	}
	return missing, nil
}

// fateless returns the records that a group should have seen and has no fate for.
func fateless(ctx context.Context, t Target, schema, group string, types []string, records []*kgo.Record) ([]string, error) {
	rows, _ := t.DB.Query(ctx, `
		SELECT event_id::text
		FROM `+pgx.Identifier{schema, "processed_messages"}.Sanitize()+`
		WHERE consumer_group = $1`, group)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the fates of group %s: %w", group, err)
	}
	known := make(map[string]bool, len(ids))
	for _, id := range ids {
		known[id] = true
	}
	var without []string
	for _, r := range records {
		if slices.Contains(types, header(r, "ce_type")) && !known[header(r, "ce_id")] {
			without = append(without, fmt.Sprintf("message %s, partition %d offset %d", header(r, "ce_id"), r.Partition, r.Offset))
		}
	}
	return without, nil
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}
