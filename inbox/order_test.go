package inbox_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/tally"
)

var (
	seeds = flag.Int("inbox.seeds", 4, "seeded rounds of the order test")
	seed  = flag.Uint64("inbox.seed", 0, "run the order test with this seed only")
)

// The whole promise against everything that can go wrong at once: members that join, leave, die at every point between
// fetch and offset commit and wake up after their session; owners that overlap; handlers that fail in every way; messages
// that come up to ten times; dead letters that are replayed again and again. I10, I11, I12, I19, I20.
func TestOrderHoldsUnderEverything(t *testing.T) {
	t.Parallel()
	total := &tally.Tally{}
	first, rounds := *seed, 1
	if first == 0 {
		first, rounds = uint64(time.Now().UnixNano()), *seeds
	}
	t.Cleanup(func() {
		total.Report(t, "order", rounds, append([]string{zombie, replayed, heldForGood, severed}, deaths...)...)
	})
	broker := kafkatest.New(t)
	client := broker.Client(t)
	for seed := first; seed < first+uint64(rounds); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("run it again with: make test-order SEED=%d", seed)
				}
			})
			r := &round{
				world: &world{T: t, db: newDatabase(t), broker: broker, client: client, adm: kadm.NewClient(client)},
				seed:  seed, total: total, topic: fmt.Sprint("orders-", seed), group: fmt.Sprint("group-", seed),
				members: map[*doomed]bool{},
			}
			r.keys, r.seqs = size(seed)
			r.run()
		})
	}
}

const sessionFor = 700 * time.Millisecond

// size is how many keys a round has, and how many messages each of them: few keys, which meet all that can happen to a key. Every
// fiftieth round of a long run, which takes a minute with the race detector, has many.
func size(round uint64) (keys, seqs int) {
	if round%50 == 0 && (*seeds >= 50 || *seed == round) {
		return 2000, 3
	}
	return 24, 8
}

// What must have happened in many rounds, beside every death. I26.
const (
	zombie      = "zombies"
	replayed    = "replays"
	heldForGood = "keys held for good"
	severed     = "waves of severed connections"
)

// round is one run. The seed decides what everybody does; what the scheduler does is not in its hands.
type round struct {
	*world
	seed         uint64
	keys, seqs   int
	total        *tally.Tally
	topic, group string
	history      history
	fixed        atomic.Bool // handlers do no more than is known to be wrong for good
	peace        atomic.Bool // nobody dies

	mu      sync.Mutex
	members map[*doomed]bool // true: in the round's group
}

// random are the dice of one of those that take part.
func (r *round) random(who uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, who)) }

// chance is a number below 200 that depends on the seed and the message only.
func (r *round) chance(key string, seq int) int {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %d", r.seed, key, seq)
	return int(h.Sum64() % 200)
}

// hopeless messages are never repaired.
func (r *round) hopeless(e entry) bool { return r.chance(e.key, e.seq) == 0 }

// handle makes the effect and then fails in the way that the message was given: all of it must be undone.
func (r *round) handle(ctx context.Context, tx pgx.Tx, m inbox.Message, d *doomed) error {
	if err := enter(ctx, tx, m); err != nil {
		return err
	}
	d.dies(inHandler)
	var seq int
	if _, err := fmt.Sscanf(string(m.Payload), `{"seq":%d`, &seq); err != nil {
		return inbox.Permanent(err)
	}
	c := r.chance(m.Key, seq)
	switch {
	case c < 1:
		return r.fails("hopeless tries", inbox.Permanent(errors.New("never valid")))
	case c < 4 && !r.fixed.Load():
		return r.fails("permanent failures", inbox.Permanent(errors.New("not valid")))
	case c < 8 && m.Attempt < 3:
		return r.fails("transient failures", errors.New("not yet"))
	case c < 9 && m.Attempt < 6:
		return r.fails("transient failures that go on", errors.New("not for long"))
	case c < 11 && m.Attempt < 4:
		_ = r.fails("panics", nil)
		panic("boom")
	case c < 12 && m.Attempt < 3:
		return r.fails("delays asked for", inbox.RetryAfter(30*time.Millisecond, errors.New("later")))
	case c < 13 && rand.IntN(4) == 0:
		return r.fails("outages", inbox.Outage(errors.New("provider is away")))
	case c < 15:
		return r.fails("discards", inbox.Discard("superseded"))
	case c < 17 && m.Attempt < 3:
		_, err := tx.Exec(ctx, `SELECT FROM nowhere`)
		_ = r.fails("swallowed errors", err)
	case c < 20 && rand.IntN(3) == 0:
		return r.fails("serialization failures", fmt.Errorf("update: %w", &pgconn.PgError{Code: "40001"}))
	}
	return nil
}

func (r *round) fails(what string, err error) error {
	r.total.Add(what, 1)
	return err
}

// member runs one consumer after the other until ctx ends. In every other round handlers get batches.
func (r *round) member(ctx context.Context, random *rand.Rand, overlaps bool) {
	for ctx.Err() == nil {
		life, stop := context.WithCancel(ctx)
		d := r.newDoomed(random, stop)
		route := inbox.Route{Topic: r.topic, Type: placed}
		one := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error { return r.handle(ctx, tx, m, d) }
		if route.Handle = one; r.seed%2 == 0 {
			route.Handle, route.HandleBatch = nil, func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
				for _, m := range msgs {
					if err := one(ctx, tx, m); err != nil {
						return err
					}
				}
				return nil
			}
		}
		opts := r.options()
		opts.Kafka = append(opts.Kafka, d.dialer()...)
		opts.Kafka = append(opts.Kafka, kgo.ClientID(fmt.Sprintf("%p", d)),
			kgo.SessionTimeout(sessionFor), kgo.HeartbeatInterval(sessionFor/5), kgo.RebalanceTimeout(2*time.Second), kgo.FetchMaxWait(200*time.Millisecond))
		opts.Log, opts.Workers, opts.Evidence, opts.Lease = nil, 2, -1, 300*time.Millisecond
		opts.DrainEvery, opts.CommitEvery = 100*time.Millisecond, 50*time.Millisecond
		opts.BatchSize, opts.InlineAttempts = 1+random.IntN(40), 1+random.IntN(3)
		c, err := inbox.NewConsumer(d.pool, r.group, []inbox.Route{route}, opts)
		if err != nil {
			r.Error(err)
			return
		}
		if overlaps {
			c.Overlap(r.group + "-zombie")
		}
		d.consumer = c
		r.born(d, !overlaps)
		if err := c.Run(life); err != nil {
			r.Error(err)
		}
		stop()
		r.died(d)
	}
}

func (r *round) born(d *doomed, inGroup bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members[d] = inGroup
	if r.peace.Load() {
		d.spare()
	}
}

func (r *round) died(d *doomed) {
	r.mu.Lock()
	delete(r.members, d)
	r.mu.Unlock()
	d.kill() // what is left of its connections
	d.pool.Close()
}

// makePeace lets everybody live from here on.
func (r *round) makePeace() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peace.Store(true)
	for d := range r.members {
		d.spare()
	}
}

func (r *round) run() {
	r.broker.Create(r.T, 4, nil, r.topic)
	r.exec(createLedger)
	ctx, cancel := context.WithCancel(r.Context())
	var members sync.WaitGroup
	defer members.Wait()
	defer cancel()
	for who := range uint64(3) {
		members.Go(func() { r.member(ctx, r.random(1+who), false) })
	}
	if r.seed%3 == 0 {
		members.Go(func() { r.member(ctx, r.random(9), true) })
	}

	random := r.random(0)
	var zombies sync.WaitGroup
	for _, wave := range r.waves(random) {
		r.produce(wave...)
		if err := r.history.published(wave...); err != nil {
			r.Fatal(err)
		}
		switch random.IntN(5) {
		case 0:
			zombies.Go(r.pauseOne)
		case 1:
			r.exec(`
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'member' AND random() < 0.5`)
			r.total.Add(severed, 1)
		case 2:
			r.replay()
		}
		r.judge("under way")
	}
	zombies.Wait()
	r.makePeace()
	r.fixed.Store(true)
	r.settle()
	cancel()
	members.Wait()
	r.history.atRest = true
	r.judge("at rest")
	r.total.Add("keys", r.keys)
	r.total.Add("messages", r.keys*r.seqs)
	r.total.Add("records", len(r.history.appearances))
	r.total.Add(heldForGood, len(r.history.heads()))
}

// settle waits until every message is done, discarded, or in a line that waits for a person.
func (r *round) settle() {
	r.Helper()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	expel := time.Now().Add(2 * sessionFor)
	patience := time.Minute + time.Duration(r.keys)*100*time.Millisecond
	for deadline := time.Now().Add(patience); ; <-look.C {
		if time.Now().After(expel) {
			r.expelTheDead()
			expel = time.Now().Add(2 * sessionFor)
		}
		r.read()
		left := r.history.unfinished(r.hopeless)
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("%d messages are not at rest %v after the last trouble\nparked: %s%s", left, patience, r.describeParked(), r.describeMembers())
		}
		r.replay()
	}
}

// expelTheDead does what a broker does when a session has timed out. kfake forgets it for a member whose connection breaks
// before its first JoinGroup is answered: such a member would keep its partitions for ever.
func (r *round) expelTheDead() {
	r.Helper()
	groups, err := r.adm.DescribeGroups(r.Context(), r.group)
	if err != nil {
		r.Fatal(err)
	}
	alive := map[string]bool{}
	r.mu.Lock()
	for d := range r.members {
		alive[fmt.Sprintf("%p", d)] = true
	}
	r.mu.Unlock()
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = r.group
	for _, m := range groups[r.group].Members {
		if !alive[m.ClientID] {
			ghost := kmsg.NewLeaveGroupRequestMember()
			ghost.MemberID = m.MemberID
			leave.Members = append(leave.Members, ghost)
		}
	}
	if len(leave.Members) == 0 {
		return
	}
	if _, err := leave.RequestWith(r.Context(), r.client); err != nil {
		r.Fatal(err)
	}
}

// describeMembers says where the group stands, and what each of its consumers waits for.
func (r *round) describeMembers() string {
	var b strings.Builder
	groups, err := r.adm.DescribeGroups(r.Context(), r.group)
	if err != nil {
		fmt.Fprintf(&b, "\ngroup: %v", err)
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "\ngroup %s is %s", g.Group, g.State)
		for _, m := range g.Members {
			assigned, _ := m.Assigned.AsConsumer()
			fmt.Fprintf(&b, "\n  %s has %+v", m.ClientID, assigned)
		}
	}
	offsets, err := r.adm.FetchOffsets(r.Context(), r.group)
	fmt.Fprintf(&b, "\ncommitted: %v", err)
	offsets.Each(func(o kadm.OffsetResponse) { fmt.Fprintf(&b, " %d:%d", o.Partition, o.At) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, inGroup := range r.members {
		fmt.Fprintf(&b, "\nmember %p, in the group %t, ready: %v, waits for %q", d, inGroup, d.consumer.Ready(), d.consumer.Why())
	}
	return b.String()
}

func (r *round) exec(sql string) {
	r.Helper()
	if _, err := r.db.Pool.Exec(r.Context(), sql); err != nil {
		r.Fatal(err)
	}
}

func (r *round) read() {
	r.Helper()
	if err := r.history.read(r.Context(), r.adm, r.db.Pool, r.group, r.topic); err != nil {
		r.Fatal(err)
	}
}

func (r *round) judge(when string) {
	r.Helper()
	r.read()
	if err := r.history.judge().Err(); err != nil {
		r.Fatalf("%s: %v", when, err)
	}
}

// replay has the dead tried again that may live.
func (r *round) replay() {
	r.Helper()
	f := inbox.Filter{Group: r.group, State: inbox.StateDead}
	for _, p := range r.parked(f) {
		if full, err := inbox.ShowParked(r.Context(), r.db.Pool, p.ID); err == nil {
			var seq int
			if _, err := fmt.Sscanf(string(full.Payload), `{"seq":%d`, &seq); err != nil {
				r.Fatal(err)
			}
			if !r.hopeless(entry{key: p.Key, seq: seq}) {
				f.IDs = append(f.IDs, p.ID)
			}
		}
	}
	if f.IDs == nil {
		return
	}
	n, err := inbox.Replay(r.Context(), r.db.Pool, f, "chaos")
	if err != nil {
		r.Fatal(err)
	}
	r.total.Add(replayed, n)
}

// pauseOne stops a member as SIGSTOP does until the group has forgotten it, or some time is over, and lets it go on.
func (r *round) pauseOne() {
	var d *doomed
	r.mu.Lock()
	for one, inGroup := range r.members {
		if inGroup {
			d = one
		}
	}
	r.mu.Unlock()
	if d == nil {
		return
	}
	d.pause()
	defer d.resume()
	was := false
	for deadline := time.Now().Add(6 * sessionFor); time.Now().Before(deadline); {
		groups, err := r.adm.DescribeGroups(r.Context(), r.group)
		if err != nil {
			return
		}
		in := slices.ContainsFunc(groups[r.group].Members, func(m kadm.DescribedGroupMember) bool {
			return m.ClientID == fmt.Sprintf("%p", d)
		})
		if was && !in {
			r.total.Add(zombie, 1)
			return
		}
		was = was || in
		select {
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waves returns the records in the order of their production. First appearances of a key are in order; any message may
// come again later, some do so nine times.
func (r *round) waves(random *rand.Rand) [][]*kgo.Record {
	var again []*kgo.Record
	waves := make([][]*kgo.Record, r.seqs)
	for i := range waves {
		for _, key := range random.Perm(r.keys) {
			rec := record(fmt.Sprintf("u%d", key), i+1, "")
			rec.Topic = r.topic
			waves[i] = append(waves[i], rec)
			more := random.IntN(2)
			if random.IntN(20) == 0 {
				more = 9
			}
			for range more {
				copied := *rec
				again = append(again, &copied)
			}
		}
		random.Shuffle(len(again), func(a, b int) { again[a], again[b] = again[b], again[a] })
		n := len(again) / 2
		if i == r.seqs-1 {
			n = len(again)
		}
		waves[i] = append(waves[i], again[:n]...)
		again = again[n:]
	}
	return waves
}
