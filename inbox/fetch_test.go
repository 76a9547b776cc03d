package inbox

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What a message holds counts against the consumer's budget whatever it consists of, and a used up budget ends the fetching.
func TestBulkyMessagesUseUpTheBudget(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		bulk  func(*kgo.Record)
		least int64 // bytes that one such message holds
	}{
		{"10,000 headers", func(r *kgo.Record) {
			for i := range 10_000 {
				r.Headers = append(r.Headers, kgo.RecordHeader{Key: "h" + strconv.Itoa(i), Value: []byte("x")})
			}
		}, 10_000 * (2 + 1 + 40)}, // a header is a string and a slice: 40 bytes beside what they point to
		{"over the size limit", func(r *kgo.Record) { r.Value = []byte(strings.Repeat("x", 512<<10)) }, 512 << 10},
		{"a long key", func(r *kgo.Record) { r.Key = []byte(strings.Repeat("x", 512<<10)) }, 512 << 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const budget = 4 << 20
			c, err := NewConsumer(new(pgxpool.Pool), "test", []Route{{Topic: "orders", Type: "order.placed.v1", Handle: accept}},
				Options{MaxPayload: 1 << 10, MaxBufferedBytes: budget})
			if err != nil {
				t.Fatal(err)
			}
			p := newPartition(topicPartition{topic: "orders"})
			added := int64(0)
			for paused := false; !paused; added++ {
				if added > budget/tt.least {
					t.Fatalf("%d messages of %d bytes are in memory and the partition is not paused: the budget is %d", added, tt.least, budget)
				}
				rec := &kgo.Record{Topic: "orders", Offset: added, Key: []byte("u1"), Value: []byte("{}"), Headers: []kgo.RecordHeader{
					{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "ce_type", Value: []byte("order.placed.v1")},
				}}
				tt.bulk(rec)
				paused = c.addAll(t.Context(), p, []*kgo.Record{rec}, []*item{c.decoder().decode(rec, time.Now())})
			}
			if added < 2 {
				t.Errorf("paused after %d messages, want the budget used", added)
			}
		})
	}
}
