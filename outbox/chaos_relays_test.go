package outbox_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// The points of a page at which a relay dies.
const (
	fetched      = "kills before produce"
	halfProduced = "kills in the middle of produce"
	produced     = "kills before the ack"
	acked        = "kills before the checkpoint"
	saved        = "kills behind the checkpoint"
	anywhere     = "kills at any time"
	told         = "orderly stops"
)

// What happens to the living.
const (
	deposed   = "leaders deposed"
	outage    = "outages"
	truncated = "leaves truncated"
)

var deaths = []string{fetched, halfProduced, produced, acked, saved, anywhere, told}

// relayUntilKilled runs one relay after the other and ends each in one of the ways to die, until ctx ends.
func (c *chaos) relayUntilKilled(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		life, stop := context.WithCancel(ctx)
		d := &doomed{
			chaos: c, random: random, stop: stop,
			death: deaths[random.IntN(len(deaths))], after: 1 + random.IntN(8), succeeded: random.IntN(4) > 0,
		}
		d.pool = newMortalAt(c.t, c.db.URL, d)
		relay, err := outbox.NewRelay(d.pool.Pool, d, outbox.RelayOptions{
			Schema: schema, PageSize: 20 + random.IntN(100), Lease: time.Second,
			Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("death", d.death),
		})
		if err != nil {
			c.t.Error(err)
			stop()
			return
		}
		relay.SetSlotWidth(turn)
		if err := relay.Run(life); err != nil {
			c.t.Error(err)
		}
		stop()
		d.bury()
		d.pool.Close()
	}
}

// doomed is what surrounds a relay that is to die: it is its way to the broker and sees its statements. It counts which
// records may rightly be published again.
type doomed struct {
	*chaos
	random    *rand.Rand
	pool      *mortal
	stop      context.CancelFunc
	death     string
	succeeded bool // at once, not when its lease is over

	mu      sync.Mutex
	after   int // times that the point of death is passed
	dead    bool
	away    int // pages for which the broker will be away
	unsaved int // records that were acknowledged since the last checkpoint
}

// dies reports whether the relay is dead after this point.
func (d *doomed) dies(at string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead || d.death != at {
		return d.dead
	}
	if d.after--; d.after > 0 {
		return false
	}
	d.total.Add(at, 1)
	d.dead = true
	if at != told {
		d.pool.kill() // as kill -9 does
		if d.succeeded {
			d.depose()
		}
	}
	d.stop()
	return true
}

// Publish is the relay's way to the broker.
func (d *doomed) Publish(ctx context.Context, page []outbox.Record) []error {
	d.total.Add("pages", 1)
	if d.trouble() || d.dies(fetched) {
		return failAll(page, outboxtest.ErrDown)
	}
	if d.death == anywhere { // not in step with the page
		defer time.AfterFunc(time.Duration(d.random.IntN(10_000))*time.Microsecond, func() { d.dies(anywhere) })
	}
	if half := page[:len(page)/2]; d.dies(halfProduced) {
		d.broker.Publish(ctx, half)
		d.repeatable(len(half))
		return failAll(page, outboxtest.ErrDown)
	}
	if errs := d.broker.Publish(ctx, page); errs != nil {
		return errs // its time was over before
	}
	if d.dies(produced) || d.random.IntN(30) == 0 { // or only the answer is lost
		d.repeatable(len(page))
		return failAll(page, outboxtest.ErrDown)
	}
	d.mu.Lock()
	d.unsaved += len(page)
	d.mu.Unlock()
	d.dies(acked)
	d.dies(told)
	return nil
}

// trouble sometimes makes another relay lead while this one has a page to send, and sometimes starts an outage. It
// reports whether the broker is away.
func (d *doomed) trouble() bool {
	if d.random.IntN(10) == 0 {
		d.depose()
		d.total.Add(deposed, 1)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away == 0 && d.random.IntN(20) == 0 {
		d.away = 1 + d.random.IntN(3)
		d.total.Add(outage, 1)
	}
	d.away = max(0, d.away-1)
	return d.away > 0
}

func (d *doomed) repeatable(records int) {
	d.total.Add("records in flight at a failure", records)
	d.inFlight.Add(int64(records))
}

// forget counts what the relay has not saved, and never will.
func (d *doomed) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.repeatable(d.unsaved)
	d.unsaved = 0
}

// bury ends a relay that has returned: it cannot die any more.
func (d *doomed) bury() {
	d.forget()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
}

// TraceQueryStart is pgx.QueryTracer.
func (d *doomed) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, statement{}, q.SQL)
}

// TraceQueryEnd sees checkpoints, and the beginnings of terms, which forget what was not saved before.
func (d *doomed) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(statement{}).(string)
	one := q.CommandTag.RowsAffected() == 1
	switch {
	case q.Err != nil:
	case strings.HasPrefix(sql, "TRUNCATE"):
		d.total.Add(truncated, 1)
	case one && strings.Contains(sql, `INSERT INTO "orders"."outbox_cursor"`):
		d.mu.Lock()
		d.unsaved = 0
		d.mu.Unlock()
		d.total.Add("checkpoints", 1)
		d.dies(saved)
	case one && strings.Contains(sql, `SET epoch = epoch + 1`):
		d.total.Add("terms", 1)
		d.forget()
	}
}

func failAll(page []outbox.Record, err error) []error {
	errs := make([]error, len(page))
	for i := range errs {
		errs[i] = err
	}
	return errs
}
