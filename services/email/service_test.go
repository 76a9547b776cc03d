package email

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// record is a message as the relay publishes it.
func record(m inbox.Message) *kgo.Record {
	return &kgo.Record{
		Topic: m.Topic, Key: []byte(m.Key), Value: m.Payload,
		Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")},
			{Key: "ce_id", Value: []byte(m.ID.String())},
			{Key: "ce_type", Value: []byte(m.Type)},
			{Key: "ce_source", Value: []byte("test")},
			{Key: "ce_subject", Value: []byte(m.Subject)},
			{Key: "ce_time", Value: []byte(time.Now().UTC().Format(time.RFC3339Nano))},
			{Key: "content-type", Value: []byte("application/json")},
		},
	}
}

// runService runs the whole service until the test ends.
func (o *office) runService(t *testing.T, broker *kafkatest.Broker) {
	t.Helper()
	cfg := o.cfg
	cfg.Brokers, cfg.OpsAddr = broker.Addrs, "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, discard(), cfg) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil after its context ended", err)
		}
	})
}

// I17: from records to accepted mails, through duplicates at other offsets, poison and refusals.
func TestTheServiceMailsOncePerOrderAndKind(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	broker := kafkatest.New(t, event.Topics()...)
	var records []*kgo.Record
	want := map[string]int{}
	add := func(e eventOf, kind string) {
		m := messageOf(t, e)
		for range 3 { // a relay may publish a message at several offsets
			records = append(records, record(m))
		}
		want[e.Subject()+" "+kind] = 1
	}
	for i := range 20 {
		user := fmt.Sprintf("user-%d", i)
		done := completed(user)
		add(done, kindConfirmation)
		add(event.ShipmentCreated{OrderID: done.OrderID, UserID: user, Email: user + "@example.com"}, kindShipped)
		add(event.OrderFailed{OrderID: uuid.Must(uuid.NewV7()), UserID: user, Email: user + "@example.com", Status: "rejected"}, kindFailure)
		if i == 3 {
			// Poison, in front of the same user's next event: nobody's mail waits for it.
			poison := messageOf(t, completed(user))
			poison.Payload = []byte("{")
			records = append(records, record(poison))
			add(completed(user), kindConfirmation)
		}
	}
	o.post.fault(t, `{"smtp":"451","smtp_count":5}`)
	broker.Produce(t, records...)
	o.runService(t, broker)
	o.await(t, len(want), stateSent)

	got := o.post.counts(t)
	for key, n := range want {
		if got[key] != n {
			t.Errorf("mails %s: got %d, want %d", key, got[key], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("mails: got %d different ones, want %d", len(got), len(want))
	}
	var dead []inbox.Parked
	waitFor(t, "the poison to be parked", func() bool {
		var err error
		if dead, err = inbox.ListParked(t.Context(), o.pool, inbox.Filter{Group: event.GroupEmail}); err != nil {
			t.Fatal(err)
		}
		return len(dead) > 0
	})
	if len(dead) != 1 || dead[0].Class != inbox.ClassUndecodable || dead[0].State != inbox.StateDead {
		t.Errorf("parked: got %+v, want the poison only, dead and undecodable", dead)
	}
}

// An email goes out within moments of its event: the consumer's commit kicks the sender.
func TestACommitKicksTheSender(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	s, err := newSender(o.pool, discard(), nil, o.cfg, timing{poll: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("sender: %v", err)
		}
	})
	o.queue(t, 1)
	s.kickNow()
	o.await(t, 1, stateSent)
}
