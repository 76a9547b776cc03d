package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// rewindWorld has group order at work on topic orders: the effect of a message is a row.
type rewindWorld struct {
	*testing.T
	db     *pgtest.DB
	broker *kafkatest.Broker
	client *kgo.Client
}

func newRewindWorld(t *testing.T) *rewindWorld {
	t.Helper()
	broker := kafkatest.New(t, event.Orders, event.Shipments)
	w := &rewindWorld{T: t, db: migrated.New(t), broker: broker, client: broker.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))}
	w.exec(`CREATE TABLE orders.effects (id uuid NOT NULL)`)
	return w
}

func (w *rewindWorld) exec(query string, args ...any) {
	w.Helper()
	if _, err := w.db.Pool.Exec(w.Context(), query, args...); err != nil {
		w.Fatalf("%s: %v", query, err)
	}
}

func (w *rewindWorld) count(query string, args ...any) (n int) {
	w.Helper()
	if err := w.db.Pool.QueryRow(w.Context(), query, args...).Scan(&n); err != nil {
		w.Fatalf("%s: %v", query, err)
	}
	return n
}

// startConsumer runs a consumer of group order until the test ends.
func (w *rewindWorld) startConsumer() {
	w.Helper()
	apply := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		_, err := tx.Exec(ctx, `INSERT INTO orders.effects (id) VALUES ($1::text::uuid)`, m.ID.String())
		return err
	}
	c, err := inbox.NewConsumer(w.db.Pool, "order", []inbox.Route{{Topic: event.Orders, Type: "order.placed.v1", Handle: apply}}, inbox.Options{
		Schema: "orders", Kafka: []kgo.Opt{kgo.SeedBrokers(w.broker.Addrs...), kgo.ClientID("ours"), kgo.FetchMaxWait(50 * time.Millisecond), kgo.HeartbeatInterval(100 * time.Millisecond)},
		PauseEvery: 10 * time.Millisecond, CommitEvery: 10 * time.Millisecond,
	})
	if err != nil {
		w.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(w.Context()))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			w.Errorf("Run() = %v, want nil", err)
		}
	})
}

// produce writes messages to a partition, the first an hour ago and each a minute later, and returns their ids.
func (w *rewindWorld) produce(partition int32, n int) []string {
	w.Helper()
	var ids []string
	for i := range n {
		id := uuid.Must(uuid.NewV7()).String()
		ids = append(ids, id)
		record := &kgo.Record{
			Topic: event.Orders, Partition: partition, Key: []byte("ada"), Value: []byte("{}"), Timestamp: time.Now().Add(time.Duration(i-60) * time.Minute),
			Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(id)}, {Key: "ce_type", Value: []byte("order.placed.v1")}},
		}
		if err := w.client.ProduceSync(w.Context(), record).FirstErr(); err != nil {
			w.Fatal(err)
		}
	}
	return ids
}

// offset returns what the group has committed in a partition of topic orders.
func (w *rewindWorld) offset(partition int32) int64 {
	w.Helper()
	committed, err := kafka.Committed(w.Context(), w.client, "order")
	if err != nil {
		w.Fatal(err)
	}
	o, _ := committed.Lookup(event.Orders, partition)
	return o.At
}

func (w *rewindWorld) settled(partition int32, offset int64) {
	w.Helper()
	waitUntil(w.T, fmt.Sprintf("partition %d is committed at %d", partition, offset), func() bool { return w.offset(partition) == offset })
}

func (w *rewindWorld) args(args ...string) []string {
	return append([]string{"groups", "rewind", "--kafka", strings.Join(w.broker.Addrs, ","), "--database-url", w.db.URL}, args...)
}

// want runs a rewind and checks how it ends, and what it says.
func (w *rewindWorld) want(code int, says []string, args ...string) result {
	w.Helper()
	got := orderflow(w.Context(), w.args(args...)...)
	if got.code != code {
		w.Errorf("groups rewind %s = exit %d, want %d\n%s%s", strings.Join(args, " "), got.code, code, got.stdout, got.stderr)
	}
	for _, say := range says {
		if !strings.Contains(got.stdout+got.stderr, say) {
			w.Errorf("groups rewind %s does not say %q:\n%s%s", strings.Join(args, " "), say, got.stdout, got.stderr)
		}
	}
	return got
}

// resumed checks that the group is not paused and that its consumers apply a new message.
func (w *rewindWorld) resumed(partition int32) {
	w.Helper()
	if n := w.count(`SELECT count(*) FROM orders.inbox_pauses WHERE leased_until > now()`); n != 0 {
		w.Error("the group is still paused")
	}
	id := w.produce(partition, 1)[0]
	waitUntil(w.T, "a new message is applied", func() bool {
		return w.count(`SELECT count(*) FROM orders.effects WHERE id = $1::text::uuid`, id) == 1
	})
}

// F14, on purpose: what was lost is healed, nothing is done twice.
func TestARewindHealsWhatWasLostAndDoesNothingTwice(t *testing.T) {
	t.Parallel()
	w := newRewindWorld(t)
	w.startConsumer()
	w.startConsumer()
	ids := w.produce(3, 10)
	w.produce(4, 2)
	w.settled(3, 10)
	w.settled(4, 2)
	w.exec(`DELETE FROM orders.effects WHERE id = $1::text::uuid`, ids[7])
	w.exec(`DELETE FROM orders.processed_messages WHERE event_id = $1::text::uuid`, ids[7])

	got := w.want(0, []string{"1 partitions of group order would be set; --yes does it"}, "order", "--to", "-56m30s", "-o", "json")
	var plan []moveDoc
	if err := json.Unmarshal([]byte(got.stdout), &plan); err != nil || len(plan) != 1 {
		t.Fatalf("plan = %s, %v; want one partition", got.stdout, err)
	}
	want := moveDoc{Group: "order", Topic: event.Orders, Partition: 3, Committed: 10, Target: 4, Again: 6, Sampled: 6, Duplicates: 5}
	if plan[0] != want {
		t.Errorf("plan = %+v, want %+v", plan[0], want)
	}
	if w.offset(3) != 10 {
		t.Errorf("a plan has moved the offset to %d", w.offset(3))
	}

	undo := filepath.Join(t.TempDir(), "undo.json")
	w.want(0, []string{"9 of 10", "2 of 2", "order: paused; 2 members", "has no members now", "wrote " + undo, "read back the offsets of 2 partitions", "order: resumed", "are back"},
		"order", "--to", "-61m", "--yes", "--undo-file", undo)
	w.settled(3, 10)
	w.settled(4, 2)
	if n, distinct := w.count(`SELECT count(*) FROM orders.effects`), w.count(`SELECT count(DISTINCT id) FROM orders.effects`); n != 12 || distinct != 12 {
		t.Errorf("%d effects of %d messages, want 12 of 12", n, distinct)
	}
	w.resumed(3)
}

func TestUndoPutsTheOffsetsBackWhereTheyWere(t *testing.T) {
	t.Parallel()
	w := newRewindWorld(t)
	w.produce(3, 5)
	commitTo(w, 3, 4)
	undo, again := filepath.Join(t.TempDir(), "undo.json"), filepath.Join(t.TempDir(), "again.json")
	w.want(0, []string{"0 of 3", "0 members", "resumed"}, "order", "--to", "1", "--topic", event.Orders, "--partition", "3", "--yes", "--undo-file", undo)
	if got := w.offset(3); got != 1 {
		t.Fatalf("offset after the rewind = %d, want 1", got)
	}
	w.want(1, []string{"make the file for --undo", "no offset was changed", "resumed"}, "order", "--to", "earliest", "--yes", "--undo-file", undo)
	w.want(4, []string{"is of group order, not of email"}, "email", "--undo", undo)
	w.want(2, []string{"do not go with it"}, "--undo", undo, "--to", "earliest")
	w.want(2, []string{"no file to undo"}, "--undo", os.DevNull)
	other := filepath.Join(t.TempDir(), "other.json")
	content, err := os.ReadFile(undo)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte(strings.Replace(string(content), `"cluster": "`, `"cluster": "not`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(4, []string{"is of Kafka cluster"}, "--undo", other, "--yes")
	w.want(0, []string{"3 records are skipped", "--yes does it"}, "--undo", undo)
	if got := w.offset(3); got != 1 {
		t.Fatalf("offset after a refused undo and a plan = %d, want 1", got)
	}
	w.want(0, []string{"set and read back"}, "order", "--undo", undo, "--yes", "--undo-file", again)
	if got := w.offset(3); got != 4 {
		t.Errorf("offset after the undo = %d, want 4", got)
	}
	w.want(0, []string{"nothing to change"}, "--undo", undo, "--yes")
}

// commitTo sets the offset of group order, which has no members.
func commitTo(w *rewindWorld, partition int32, at int64) {
	w.Helper()
	if err := kafka.SetOffsets(w.Context(), w.client, "order", []kafka.Move{{Topic: event.Orders, Partition: partition, To: at}}); err != nil {
		w.Fatal(err)
	}
}

func TestARewindRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	w := newRewindWorld(t)
	w.produce(3, 5)
	commitTo(w, 3, 4)
	at := []string{"--topic", event.Orders, "--partition", "3"}
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no target", []string{"order"}, 2, "--to is required"},
		{"no group", []string{"--to", "earliest"}, 2, `group "" cannot be rewound`},
		{"a target that is nothing", []string{"order", "--to", "yesterday"}, 2, `"yesterday" is no time and no offset`},
		{"a time to come", []string{"order", "--to", "2999-01-01T00:00:00Z"}, 2, "has not been yet"},
		{"a duration ahead", []string{"order", "--to", "15m"}, 2, "no time and no offset"},
		{"an offset of which partition", []string{"order", "--to", "3"}, 2, "--topic and --partition"},
		{"a partition of which topic", []string{"order", "--to", "earliest", "--partition", "3"}, 2, "--partition needs --topic"},
		{"an offset ahead", append([]string{"order", "--to", "5"}, at...), 2, "out of range: 0 is the first record kept, 4 is committed"},
		{"a negative offset", append([]string{"order", "--to", "-1"}, at...), 2, "out of range"},
		{"a group of somebody else", []string{"theirs", "--to", "earliest"}, 2, "use order, email, warehouse"},
		{"a group that has committed nothing", []string{"email", "--to", "earliest"}, 3, "has committed nothing there"},
		{"a topic that the group does not read", []string{"order", "--to", "earliest", "--topic", "shipments"}, 3, "has committed nothing there"},
		{"a lease of nothing", []string{"order", "--to", "earliest", "--lease", "0s"}, 2, "--lease"},
		{"a file that is not there", []string{"--undo", filepath.Join(t.TempDir(), "none.json")}, 2, "none.json"},
		{"nothing to do", []string{"order", "--to", "-1ns", "--yes"}, 0, "nothing to change"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := *w
			w.T = t
			w.want(tc.code, []string{tc.says}, tc.args...)
		})
	}
	if got := w.offset(3); got != 4 {
		t.Errorf("offset = %d after all of it, want 4", got)
	}
	if _, err := kadm.NewClient(w.client).DeleteTopics(t.Context(), event.Orders); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "a deleted topic is none that can be rewound", func() bool {
		return orderflow(t.Context(), w.args("order", "--to", "earliest")...).code == exitNotFound
	})
}

// awaitMember waits until a client of that id is a member of the group.
func (w *rewindWorld) awaitMember(id string) {
	w.Helper()
	waitUntil(w.T, id+" is a member", func() bool {
		names, err := kafka.GroupMembers(w.Context(), w.client, "order")
		return err == nil && strings.Contains(strings.Join(names, " "), id+"@")
	})
}

// joinOther makes a program of somebody else a member of group order: it heeds no pause.
func (w *rewindWorld) joinOther() {
	w.Helper()
	other := w.broker.Client(w.T, kgo.ConsumerGroup("order"), kgo.ConsumeTopics(event.Orders), kgo.ClientID("theirs"), kgo.DisableAutoCommit())
	ctx, stop := context.WithCancel(context.WithoutCancel(w.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			other.PollFetches(ctx)
		}
	}()
	w.Cleanup(func() { stop(); <-ended })
	w.awaitMember("theirs")
}

func TestARewindGivesUpOnMembersThatDoNotHeedThePause(t *testing.T) {
	t.Parallel()
	w := newRewindWorld(t)
	w.startConsumer()
	w.produce(3, 5)
	w.settled(3, 5)
	w.joinOther()
	w.want(4, []string{"1 members have not left", "theirs@", "order: resumed", "no offset was changed"}, "order", "--to", "earliest", "--yes", "--wait", "3s")
	if err := kafka.SetOffsets(t.Context(), w.client, "order", []kafka.Move{{Topic: event.Orders, Partition: 3}}); err == nil {
		t.Error("SetOffsets of a group with members = nil, want ErrGroupHasMembers")
	}
	if n := w.count(`SELECT count(*) FROM orders.inbox_pauses`); n != 0 {
		t.Error("the group is still paused")
	}
}

func TestAnInterruptedRewindResumesTheGroup(t *testing.T) {
	t.Parallel()
	w := newRewindWorld(t)
	w.startConsumer()
	w.produce(3, 5)
	w.settled(3, 5)
	w.joinOther()
	rewind := serveInBackground(t, w.args("order", "--to", "earliest", "--yes")...)
	rewind.says("1 members are left")
	if code := rewind.interrupt(); code != exitInterrupted {
		t.Errorf("exit %d after an interrupt, want %d", code, exitInterrupted)
	}
	for _, want := range []string{"order: resumed", "order: no offset was changed"} {
		if !strings.Contains(rewind.out.String(), want) {
			t.Errorf("an interrupted rewind does not say %q:\n%s", want, rewind.out.String())
		}
	}
	if n := w.count(`SELECT count(*) FROM orders.inbox_pauses`); n != 0 {
		t.Error("the group is still paused")
	}
	w.awaitMember("ours")
}

func TestTheGroupOfARewindThatWasKilledGoesOn(t *testing.T) {
	t.Parallel()
	w := newRewindWorld(t)
	w.startConsumer()
	w.produce(3, 5)
	w.settled(3, 5)
	w.joinOther() // or the rewind would be over before it is killed
	rewind := command(t, w.args("order", "--to", "earliest", "--yes", "--lease", "3s")...)
	if err := rewind.Start(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the consumer has stopped", func() bool { return w.count(`SELECT count(*) FROM orders.inbox_paused_consumers`) == 1 })
	if err := rewind.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = rewind.Wait() // it was killed
	if n := w.count(`SELECT count(*) FROM orders.inbox_pauses WHERE leased_until > now()`); n != 1 {
		t.Fatal("the pause did not outlive the rewind: the test proves nothing")
	}
	w.awaitMember("ours")
	if got := w.offset(3); got != 5 {
		t.Errorf("offset = %d, want 5", got)
	}
}
