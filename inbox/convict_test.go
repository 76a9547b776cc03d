package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// trial is a run of one suspect under the eyes of the history.
type trial struct {
	*world
	history history
	suspect suspect
	handle  inbox.Handler // the same for every suspect

	redisOnce sync.Once
	redis     *miniredis.Miniredis // of suspects that use one
}

// suspect is a consumer that is accused. It reads under a Kafka group in a process until ctx ends.
type suspect func(ctx context.Context, x *trial, p *process, group string)

// A checker that convicts nobody proves nothing, and one that convicts everybody no more: each of these consumers has been
// published by somebody, and package inbox goes through the same.
func TestHistoryConvictsNaiveConsumers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		schedule func(x *trial)
		naive    suspect
		want     string
	}{
		{"dedup by topic, partition and offset applies again what a relay publishes again", publishedTwice, byPlace, "1 applied twice"},
		{"a dedup row in a transaction before the work loses what a crash interrupts", killedInHandler, rowBefore, "1 lost"},
		{"a dedup row in a transaction behind the work applies again what a crash interrupts", killedBehindCommit, rowBehind, "1 applied twice"},
		{"SET NX in Redis before the work loses what a crash interrupts", killedInHandler, setNX, "1 lost"},
		{"a commit of the highest finished offset loses what is slower", killedWhileOneIsSlow, highestFinished, "1 lost"},
		{"a dead letter that cannot be produced is lost when its offset is committed", deadLetterTopicMissing, produceDeadLetter, "1 lost"},
		{"dedup and holds in one statement let a message pass its held head", parkedBesideAnotherOwner, oneStatement, "1 past a held head"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := tried(t, c.schedule, c.naive)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("verdict on the naive consumer is %v, want %s", err, c.want)
			}
		})
		t.Run("inbox when "+c.name, func(t *testing.T) {
			t.Parallel()
			if err := tried(t, c.schedule, ours); err != nil {
				t.Errorf("verdict on package inbox is %v, want none", err)
			}
		})
	}
}

func tried(t *testing.T, schedule func(*trial), s suspect) error {
	x := &trial{world: newWorld(t), suspect: s, handle: enter}
	if _, err := x.db.Pool.Exec(t.Context(), createLedger); err != nil {
		t.Fatal(err)
	}
	schedule(x)
	x.history.atRest = true
	if err := x.history.read(t.Context(), x.adm, x.db.Pool, "test", topic); err != nil {
		t.Fatal(err)
	}
	return x.history.judge().Err()
}

// ours is package inbox. Under another Kafka group it is an owner of the same group's inbox that has not noticed its loss.
func ours(ctx context.Context, x *trial, p *process, group string) {
	opts := x.options()
	opts.Kafka = append(opts.Kafka, x.kafka(p)...)
	opts.Log, opts.DLQTopic = nil, missingTopic
	if x.slowOne() {
		opts.BatchSize = 1 // the slow message shares its transaction with nobody
	}
	handle := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error { return x.handle(ctx, tx, m) }
	c, err := inbox.NewConsumer(p.pool, "test", onlyPlaced(handle), opts)
	if err != nil {
		x.Error(err)
		return
	}
	c.Overlap(group)
	if err := c.Run(ctx); err != nil {
		x.Error(err)
	}
}

const missingTopic = "nobody.made.it"

// kafka is how a process of the trial gets to the broker, which forgets it soon after its death.
func (x *trial) kafka(p *process) []kgo.Opt {
	return append(p.dialer(), kgo.SeedBrokers(x.broker.Addrs...), kgo.FetchMaxWait(50*time.Millisecond),
		kgo.MetadataMinAge(20*time.Millisecond), kgo.SessionTimeout(time.Second), kgo.HeartbeatInterval(100*time.Millisecond))
}

// start runs the suspect in a process until it is stopped, or dead, or the test ends.
func (x *trial) start(p *process, group string) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(x.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		x.suspect(ctx, x, p, group)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		p.kill() // what is left of its connections
		p.pool.Close()
	})
	x.Cleanup(stop)
	return stop
}

func (x *trial) process(tracer pgx.QueryTracer) *process {
	x.Helper()
	return newProcess(x.T, x.db.URL, func(config *pgxpool.Config) { config.ConnConfig.Tracer = tracer })
}

// publish produces records, all into one partition.
func (x *trial) publish(records ...*kgo.Record) {
	x.Helper()
	client := x.broker.Client(x.T, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(x.Context(), records...).FirstErr(); err != nil {
		x.Fatal(err)
	}
	if err := x.history.published(records...); err != nil {
		x.Fatal(err)
	}
}

// atRest waits until the groups have committed everything.
func (x *trial) atRest(groups ...string) {
	x.Helper()
	x.wait("every offset committed", func() bool {
		for _, group := range groups {
			for partition, end := range x.history.ends() {
				offsets, err := x.adm.FetchOffsets(x.Context(), group)
				if err != nil {
					return false
				}
				if at, _ := offsets.Lookup(topic, partition); at.At < end {
					return false
				}
			}
		}
		return true
	})
}

func publishedTwice(x *trial) {
	rec := record("u1", 1, "")
	again := *rec
	x.publish(rec, &again)
	stop := x.start(x.process(nil), "test")
	x.atRest("test")
	stop()
}

// killedInHandler kills the first process in the middle of its work.
func killedInHandler(x *trial) {
	first := x.process(nil)
	killed := make(chan struct{})
	die := sync.OnceFunc(func() {
		first.kill()
		close(killed)
	})
	x.handle = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		die()
		return enter(ctx, tx, m) // the first process has no connection for it
	}
	x.publish(record("u1", 1, ""))
	stop := x.start(first, "test")
	<-killed
	stop()
	stop = x.start(x.process(nil), "test")
	x.atRest("test")
	stop()
}

// killedBehindCommit kills the first process when its first effect is committed, before it can do anything more.
func killedBehindCommit(x *trial) {
	k := &killer{killed: make(chan struct{})}
	k.process = x.process(k)
	x.publish(record("u1", 1, ""))
	stop := x.start(k.process, "test")
	<-k.killed
	stop()
	if n := x.count(`SELECT count(*) FROM ledger`); n != 1 {
		x.Fatalf("%d effects behind the crash, want 1", n)
	}
	stop = x.start(x.process(nil), "test")
	x.atRest("test")
	stop()
}

// killer kills its process behind the commit of an effect.
type killer struct {
	process *process
	killed  chan struct{}
	once    sync.Once
	worked  sync.Map // connections that have an effect to commit
}

// TraceQueryStart is pgx.QueryTracer.
func (k *killer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.Contains(q.SQL, "INSERT INTO ledger") {
		k.worked.Store(conn, true)
	}
	return context.WithValue(ctx, statement{}, q.SQL)
}

// TraceQueryEnd is pgx.QueryTracer.
func (k *killer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, q pgx.TraceQueryEndData) {
	if _, worked := k.worked.Load(conn); worked && q.Err == nil && ctx.Value(statement{}) == "commit" {
		k.once.Do(func() {
			k.process.kill()
			close(k.killed)
		})
	}
}

// killedWhileOneIsSlow kills the first process while the first message is at work and later ones of its partition are done
// and whatever offsets the suspect commits for them are committed.
func killedWhileOneIsSlow(x *trial) {
	first := x.process(nil)
	killed := make(chan struct{})
	x.handle = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Key == "slow" {
			<-killed
		}
		return enter(ctx, tx, m)
	}
	x.publish(record("slow", 1, "slow"), record("quick", 1, ""))
	stop := x.start(first, "test")
	x.wait("the quick message", func() bool { return x.count(`SELECT count(*) FROM ledger`) == 1 })
	// A suspect that has committed the offset of this one had its say on those before it.
	elsewhere := record("elsewhere", 1, "")
	elsewhere.Partition = 1
	x.publish(elsewhere)
	x.wait("an offset commit", func() bool { return x.committed(1) == 1 })
	first.kill()
	close(killed)
	stop()
	stop = x.start(x.process(nil), "test")
	x.atRest("test")
	stop()
}

// slowOne reports whether the schedule has a message that waits for others.
func (x *trial) slowOne() bool {
	for _, a := range x.history.appearances {
		if a.key == "slow" {
			return true
		}
	}
	return false
}

func deadLetterTopicMissing(x *trial) {
	x.handle = func(context.Context, pgx.Tx, inbox.Message) error { return inbox.Permanent(errors.New("not valid")) }
	x.publish(record("u1", 1, ""))
	stop := x.start(x.process(nil), "test")
	x.atRest("test")
	stop()
}

// parkedBesideAnotherOwner has one owner of a partition park the first message of a key while another owner, which has the
// second message too, waits for the row that the first one has in processed_messages.
func parkedBesideAnotherOwner(x *trial) {
	var tries atomic.Int32
	parking := make(chan struct{})
	x.handle = func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) != "poison" {
			return enter(ctx, tx, m)
		}
		if tries.Add(1) == 2 { // at the first try it is not yet known that it will be parked
			close(parking)
			x.wait("the other owner to wait for this one", func() bool {
				return x.count(`
					SELECT count(*) FROM pg_stat_activity
					WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
			})
		}
		return inbox.Permanent(errors.New("not valid"))
	}
	x.publish(record("u1", 1, "poison"))
	stop := x.start(x.process(nil), "test")
	<-parking
	x.publish(record("u1", 2, ""))
	stopOther := x.start(x.process(nil), "zombie")
	x.atRest("test", "zombie")
	stop()
	stopOther()
}

// message is what a naive consumer makes of a record.
func message(rec *kgo.Record) inbox.Message {
	m := inbox.Message{Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Key: string(rec.Key), Payload: rec.Value}
	h := history{}
	if err := h.published(rec); err == nil {
		m.ID = h.appearances[0].id
	}
	return m
}

// poll is the loop of a naive consumer: it hands what it polls to work until that fails, which is its end.
func (x *trial) poll(ctx context.Context, p *process, group string, work func(client *kgo.Client, records []*kgo.Record) error) {
	client, err := kgo.NewClient(append(x.kafka(p), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.UnknownTopicRetries(1))...)
	if err != nil {
		x.Error(err)
		return
	}
	defer client.CloseAllowingRebalance()
	for ctx.Err() == nil {
		if err := work(client, client.PollFetches(ctx).Records()); err != nil {
			x.Logf("naive consumer ends: %v", err)
			return
		}
	}
}

// oneByOne is a loop that commits the offset of each message when do has returned.
func (x *trial) oneByOne(ctx context.Context, p *process, group string, do func(m inbox.Message) error) {
	x.poll(ctx, p, group, func(client *kgo.Client, records []*kgo.Record) error {
		for _, rec := range records {
			if err := do(message(rec)); err != nil {
				return err
			}
			if err := client.CommitRecords(ctx, rec); err != nil {
				return fmt.Errorf("commit offset: %w", err)
			}
		}
		return nil
	})
}

// remember inserts a dedup row and reports whether it was not there.
func remember(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, m inbox.Message) (fresh bool, err error) {
	err = db.QueryRow(ctx, `
		WITH fresh AS (
			INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
			VALUES (0, 'test', $1::text::uuid, '', 'done')
			ON CONFLICT DO NOTHING
			RETURNING event_id
		)
		SELECT count(*) > 0 FROM fresh`, m.ID.String()).Scan(&fresh)
	return fresh, err
}
