package inboxtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/inbox"
)

// Trial runs a service's handlers under faults. Pool, Routes and Messages are required.
type Trial struct {
	// Pool connects to a database with the service's tables and, in its search_path, those of the inbox and the outbox. The
	// consumers share it, so it should allow some 20 connections. Its role ends connections of its own, as every role may.
	Pool *pgxpool.Pool
	// Group is the consumer group. Default "inboxtest".
	Group string
	// Routes are the service's.
	Routes []inbox.Route
	// Options are the service's; Kafka, InstanceID and CommitEvery are not used. Shorter retries make a trial shorter.
	Options inbox.Options
	// Messages are published in this order, as far as a key is concerned: Topic, Key, Type and Payload, and the ID if
	// there is one. The handlers must be able to apply every one.
	Messages []inbox.Message
	// Seed chooses the faults. Default: another one each time; a failed trial's error names it.
	Seed uint64
}

// Report is what was done to the consumers in a trial.
type Report struct {
	Seed       uint64
	Duplicates int   // records that were published again
	Crashes    int64 // connections that died between a handler and its commit
	Refused    int64 // commits of offsets that were lost
	Rebalances int   // times that a member left and another joined
	Forgotten  int   // records that were delivered again because the group forgot its offsets
}

const (
	partitions = 4
	waves      = 6
	members    = 2
	maxCrashes = 10 // a pause follows each
)

// Run publishes the messages, injects the faults, and returns when every message has its fate: the messages as they were
// published first, with their ids, and what was done. It returns an error when a message was given up or ctx ended first,
// with what the consumers say they wait for, and when a fault never happened: with fewer messages than some dozens there
// may be no place for each.
func (t Trial) Run(ctx context.Context) ([]inbox.Message, Report, error) {
	r := &run{Trial: t, report: Report{Seed: cmp.Or(t.Seed, rand.Uint64())}} //nolint:gosec // faults are no secret
	r.Group = cmp.Or(t.Group, "inboxtest")
	r.random = rand.New(rand.NewPCG(r.report.Seed, 0)) //nolint:gosec // faults are no secret
	err := r.all(ctx)
	r.report.Crashes, r.report.Refused = r.crashes.Load(), r.refused.Load()
	if err == nil {
		err = r.report.vacuous()
	}
	if err != nil {
		err = fmt.Errorf("trial with seed %d: %w", r.report.Seed, err)
	}
	return r.sent, r.report, err
}

func (r Report) vacuous() error {
	if r.Duplicates == 0 || r.Crashes == 0 || r.Refused == 0 || r.Rebalances == 0 || r.Forgotten == 0 {
		return fmt.Errorf("a fault never happened, so the trial proves little: %+v", r)
	}
	return nil
}

// run is one run of a trial.
type run struct {
	Trial
	random *rand.Rand
	report Report
	sent   []inbox.Message

	cluster *kfake.Cluster
	client  *kgo.Client
	running []*member

	calm             atomic.Bool // no more faults
	calls            atomic.Int64
	crashes, refused atomic.Int64
}

// member is one consumer that runs.
type member struct {
	*inbox.Consumer
	stop func() error
}

func (r *run) all(ctx context.Context) (err error) {
	topics := map[string]bool{}
	for _, route := range r.Routes {
		topics[route.Topic] = true
	}
	r.cluster, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, slices.Collect(maps.Keys(topics))...))
	if err != nil {
		return fmt.Errorf("start a broker: %w", err)
	}
	defer r.cluster.Close()
	r.loseOffsets()
	if r.client, err = kgo.NewClient(kgo.SeedBrokers(r.cluster.ListenAddrs()...)); err != nil {
		return err
	}
	defer r.client.Close()
	defer func() { err = errors.Join(err, r.stopAll()) }()
	for range members {
		if err := r.join(ctx); err != nil {
			return err
		}
	}
	for wave := range slices.Values(r.waves()) {
		if err := r.client.ProduceSync(ctx, wave...).FirstErr(); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if err := r.rebalance(ctx); err != nil {
			return err
		}
	}
	r.calm.Store(true)
	if err := r.settled(ctx); err != nil {
		return err
	}
	return r.forget(ctx)
}

// waves are the messages as records, each key's in order and the keys interleaved at random, with duplicates behind them.
func (r *run) waves() [][]*kgo.Record {
	type lane struct{ topic, key string }
	lines := map[lane][]inbox.Message{}
	var order []lane
	for _, m := range r.Messages {
		if m.ID == uuid.Nil {
			m.ID = uuid.Must(uuid.NewV7())
		}
		at := lane{m.Topic, m.Key}
		if lines[at] == nil {
			order = append(order, at)
		}
		lines[at] = append(lines[at], m)
	}
	var records, published []*kgo.Record
	for len(order) > 0 {
		i := r.random.IntN(len(order))
		at := order[i]
		m := lines[at][0]
		if lines[at] = lines[at][1:]; len(lines[at]) == 0 {
			order = slices.Delete(order, i, i+1)
		}
		r.sent = append(r.sent, m)
		published = append(published, recordOf(m))
		records = append(records, published[len(published)-1])
		for r.random.IntN(3) == 0 {
			again := *published[r.random.IntN(len(published))]
			records = append(records, &again)
			r.report.Duplicates++
		}
	}
	size := max(1, (len(records)+waves-1)/waves)
	return slices.Collect(slices.Chunk(records, size))
}

func recordOf(m inbox.Message) *kgo.Record {
	rec := &kgo.Record{Topic: m.Topic, Key: []byte(m.Key), Value: m.Payload, Headers: []kgo.RecordHeader{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(m.ID.String())},
		{Key: "ce_type", Value: []byte(m.Type)},
		{Key: "ce_source", Value: []byte(cmp.Or(m.Source, "inboxtest"))},
		{Key: "ce_subject", Value: []byte(m.Subject)},
		{Key: "ce_time", Value: []byte(time.Now().UTC().Format(time.RFC3339Nano))},
	}}
	for _, h := range m.Headers {
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return rec
}

// loseOffsets refuses two of three commits of offsets: the process could have died just before.
func (r *run) loseOffsets() {
	var commits atomic.Int64
	r.cluster.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.cluster.KeepControl()
		if r.calm.Load() || commits.Add(1)%3 == 0 {
			return nil, nil, false
		}
		r.refused.Add(1)
		return refusal(req.(*kmsg.OffsetCommitRequest)), nil, true
	})
}

func refusal(req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	for _, topic := range req.Topics {
		refused := kmsg.NewOffsetCommitResponseTopic()
		refused.Topic, refused.TopicID = topic.Topic, topic.TopicID
		for _, p := range topic.Partitions {
			part := kmsg.NewOffsetCommitResponseTopicPartition()
			part.Partition, part.ErrorCode = p.Partition, kerr.InvalidCommitOffsetSize.Code
			refused.Partitions = append(refused.Partitions, part)
		}
		resp.Topics = append(resp.Topics, refused)
	}
	return resp
}

// crashing is a route that now and then loses its connection after the handler, before the commit.
func (r *run) crashing(route inbox.Route) inbox.Route {
	crash := func(ctx context.Context, tx pgx.Tx) error {
		if r.calm.Load() || r.calls.Add(1)%7 != 0 || r.crashes.Load() >= maxCrashes {
			return nil
		}
		r.crashes.Add(1)
		_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		return err
	}
	if handle := route.Handle; handle != nil {
		route.Handle = func(ctx context.Context, tx pgx.Tx, msg inbox.Message) error {
			if err := handle(ctx, tx, msg); err != nil {
				return err
			}
			return crash(ctx, tx)
		}
	}
	if handle := route.HandleBatch; handle != nil {
		route.HandleBatch = func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
			if err := handle(ctx, tx, msgs); err != nil {
				return err
			}
			return crash(ctx, tx)
		}
	}
	return route
}

// join starts a consumer.
func (r *run) join(ctx context.Context) error {
	opts := r.Options
	opts.Kafka = []kgo.Opt{kgo.SeedBrokers(r.cluster.ListenAddrs()...), kgo.FetchMaxWait(50 * time.Millisecond), kgo.MetadataMinAge(20 * time.Millisecond)}
	opts.CommitEvery = 20 * time.Millisecond
	opts.InstanceID = "" // members need different ones, and should leave at once
	routes := make([]inbox.Route, len(r.Routes))
	for i, route := range r.Routes {
		routes[i] = r.crashing(route)
	}
	consumer, err := inbox.NewConsumer(r.Pool, r.Group, routes, opts)
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var ended sync.WaitGroup
	ended.Go(func() { err = consumer.Run(running) })
	r.running = append(r.running, &member{consumer, func() error {
		cancel()
		ended.Wait()
		return err
	}})
	return poll(ctx, func() error { return notYet(consumer.Ready()) })
}

// rebalance has the longest member leave and another one join, in the middle of what they do.
func (r *run) rebalance(ctx context.Context) error {
	r.report.Rebalances++
	leaving := r.running[0]
	r.running = r.running[1:]
	return errors.Join(leaving.stop(), r.join(ctx))
}

func (r *run) stopAll() error {
	var errs []error
	for _, m := range r.running {
		errs = append(errs, m.stop())
	}
	r.running = nil
	return errors.Join(errs...)
}

// forget has the group start again at the first record.
func (r *run) forget(ctx context.Context) error {
	if err := r.stopAll(); err != nil {
		return err
	}
	if _, err := kadm.NewClient(r.client).DeleteGroup(ctx, r.Group); err != nil {
		return fmt.Errorf("forget the group's offsets: %w", err)
	}
	r.report.Forgotten = len(r.sent) + r.report.Duplicates
	if err := r.join(ctx); err != nil {
		return err
	}
	return r.settled(ctx)
}

// settled waits until every record is consumed and no message parked.
func (r *run) settled(ctx context.Context) error {
	return poll(ctx, func() error {
		parked, err := inbox.ListParked(ctx, r.Pool, inbox.Filter{Group: r.Group})
		if err != nil {
			return notYet(err)
		}
		for _, p := range parked {
			if p.State == inbox.StateDead {
				return fmt.Errorf("message %s of %s/%s was given up, %s: %s", p.EventID, p.Topic, p.Key, p.Class, p.Error)
			}
		}
		lag, err := r.lag(ctx)
		switch {
		case err != nil:
			return notYet(err)
		case lag+len(parked) > 0:
			var why []string
			for _, m := range r.running {
				why = append(why, m.Why()...)
			}
			return notYet(fmt.Errorf("%d records are not consumed, %d messages parked; the consumers say: %q", lag, len(parked), why))
		}
		return nil
	})
}

func (r *run) lag(ctx context.Context) (int, error) {
	lags, err := kadm.NewClient(r.client).Lag(ctx, r.Group)
	if err != nil {
		return 0, err
	}
	group := lags[r.Group]
	if err := group.Error(); err != nil {
		return 0, err
	}
	lag := int64(0)
	for _, topic := range group.Lag {
		for _, p := range topic {
			if p.Err != nil {
				return 0, p.Err
			}
			lag += p.Lag
		}
	}
	return int(lag), nil
}

// errNotYet marks what may be otherwise soon.
var errNotYet = errors.New("not yet")

func notYet(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errNotYet, err)
}

// poll calls check until it returns something else than not yet, or ctx ends.
func poll(ctx context.Context, check func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if !errors.Is(err, errNotYet) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}
