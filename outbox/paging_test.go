package outbox_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/orderflow-dev/orderflow/outbox"
)

// Whatever begins, writes, commits and rolls back in between, and wherever a leader dies in a big window: a
// turn publishes each row that was committed before it and not published yet, once, and nothing else.
func TestEveryCommittedRowIsInExactlyOneWindow(t *testing.T) {
	t.Parallel()
	pool := newOutbox(t).Pool
	rapid.Check(t, func(rt *rapid.T) {
		m := newPaging(t.Context(), rt, pool)
		defer m.end()
		for range rapid.IntRange(1, 10).Draw(rt, "steps") {
			rapid.SampledFrom([]func(){m.begin, m.write, m.write, m.commit, m.commit, m.rollBack, m.turn, m.turn, m.die}).
				Draw(rt, "step")()
		}
		for len(m.open) > 0 {
			m.commit()
		}
		m.turn()
		m.turn() // if a leader has died in a window, the first one only ends that
	})
}

// paging is an outbox with a leader, and what should be in it.
type paging struct {
	rt     *rapid.T
	ctx    context.Context //nolint:containedctx // of one check
	pool   *pgxpool.Pool
	relay  *outbox.Relay
	leader *outbox.Leader

	open      []*openTx
	committed map[string]int // ids, and how often they should have been published by now
	window    map[string]int // what was committed when the window began in which a leader died
	published map[string]int
	last      int64 // seq of the last record of this turn
	pages     int   // until the leader dies; negative if it does not
	stop      context.CancelFunc
}

type openTx struct {
	tx  pgx.Tx
	key string
	ids []string
}

func newPaging(ctx context.Context, rt *rapid.T, pool *pgxpool.Pool) *paging {
	m := &paging{
		rt: rt, ctx: ctx, pool: pool, committed: map[string]int{}, published: map[string]int{}, pages: -1,
	}
	m.must(pool.Exec(ctx, `TRUNCATE orders.outbox`))
	var err error
	m.relay, err = outbox.NewRelay(pool, publisherFunc(m.publish), outbox.RelayOptions{
		Schema: schema, Name: uuid.NewString(), Lease: time.Hour,
		PageSize:  rapid.IntRange(1, 300).Draw(rt, "page size"),
		PageBytes: rapid.SampledFrom([]int{100, 20_000, 8 << 20}).Draw(rt, "page bytes"),
	})
	m.check(err)
	m.relay.SetListMax(rapid.IntRange(1, 900).Draw(rt, "list max"))
	m.lead()
	return m
}

func (m *paging) check(err error) {
	if err != nil {
		m.rt.Fatal(err)
	}
}

func (m *paging) must(_ any, err error) { m.check(err) }

func (m *paging) lead() {
	var err error
	m.leader, err = m.relay.Lead(m.ctx)
	m.check(err)
}

func (m *paging) begin() {
	if len(m.open) == 4 {
		return
	}
	tx, err := m.pool.Begin(m.ctx)
	m.check(err)
	m.open = append(m.open, &openTx{tx: tx, key: uuid.NewString()})
}

// pick returns an open transaction, nil if there is none.
func (m *paging) pick() *openTx {
	if len(m.open) == 0 {
		return nil
	}
	return rapid.SampledFrom(m.open).Draw(m.rt, "transaction")
}

func (m *paging) write() {
	if len(m.open) == 0 {
		m.begin()
	}
	o := m.pick()
	var msgs []outbox.Message
	// A poll returns at most 500 rows of each kind, and payloads of at most 8 KiB.
	for n := range rapid.SampledFrom([]int{1, 2, 3, 4, 5, 30, 500, 501}).Draw(m.rt, "rows") {
		msg := message("orders", o.key, n)
		msg.ID = uuid.New()
		o.ids = append(o.ids, msg.ID.String())
		msgs = append(msgs, msg)
	}
	msgs[0].Payload = make([]byte, rapid.SampledFrom([]int{1, 8192, 8193}).Draw(m.rt, "payload"))
	m.check((outbox.Writer{Schema: schema}).Write(m.ctx, o.tx, msgs...))
}

func (m *paging) commit() {
	if o := m.pick(); o != nil {
		m.check(o.tx.Commit(m.ctx))
		for _, id := range o.ids {
			m.committed[id] = 1
		}
		m.forget(o)
	}
}

func (m *paging) rollBack() {
	if o := m.pick(); o != nil {
		m.check(o.tx.Rollback(m.ctx))
		m.forget(o)
	}
}

func (m *paging) forget(o *openTx) {
	m.open = slices.DeleteFunc(m.open, func(other *openTx) bool { return other == o })
}

func (m *paging) turn() {
	m.last = 0
	m.check(m.leader.Turn(m.ctx))
	want := m.committed
	if m.window != nil {
		want, m.window = m.window, nil
	}
	if !maps.Equal(want, m.published) {
		m.rt.Fatalf("published after a turn (-want +got):\n%s", cmp.Diff(want, m.published))
	}
	if m.leader.InWindow() {
		m.rt.Fatal("a turn has left a window undone")
	}
}

// die has the leader die before it sends a page, and another one take over.
func (m *paging) die() {
	m.check(m.leader.Checkpoint(m.ctx)) // what is published is saved: nothing may come twice
	ctx, stop := context.WithCancel(m.ctx)
	defer stop()
	m.stop, m.pages, m.last = stop, rapid.IntRange(0, 3).Draw(m.rt, "pages"), 0
	err := m.leader.Turn(ctx)
	dead := m.pages == 0 && err != nil
	m.pages = -1
	if !dead {
		m.check(err)
		m.check(m.leader.Checkpoint(m.ctx))
	}
	m.lead()
	switch {
	case !m.leader.InWindow():
		m.window = nil
	case m.window == nil:
		m.window = maps.Clone(m.committed)
	}
}

// publish is the leader's way to Kafka.
func (m *paging) publish(_ context.Context, page []outbox.Record) []error {
	if m.pages == 0 {
		m.stop()
		return failAll(page, errors.New("dead"))
	}
	m.pages--
	for _, r := range page {
		if r.Seq <= m.last {
			m.rt.Fatalf("seq %d is published behind %d", r.Seq, m.last)
		}
		m.last = r.Seq
		m.published[r.ID.String()]++
	}
	return nil
}

func (m *paging) end() {
	for _, o := range m.open {
		_ = o.tx.Rollback(m.ctx) // a check that has failed leaves them open
	}
}
