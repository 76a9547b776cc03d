package inbox_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/tally"
)

// The points at which a consumer dies.
const (
	beforeDedup    = "kills before dedup"
	dedupped       = "kills behind dedup"
	looked         = "kills behind the look at holds"
	inHandler      = "kills in a handler"
	fenced         = "kills of drainers that hold the lock"
	beforePark     = "kills before a park"
	parkedIt       = "kills behind a park"
	beforeCommit   = "kills before a commit"
	commitUnheard  = "kills before the answer to a commit"
	committedIt    = "kills behind a commit"
	beforeOffsets  = "kills before an offset commit"
	offsetsUnheard = "kills before the answer to an offset commit"
	told           = "orderly stops"
)

var deaths = []string{
	beforeDedup, dedupped, looked, inHandler, fenced, beforePark, parkedIt, beforeCommit, commitUnheard, committedIt,
	beforeOffsets, offsetsUnheard, told,
}

// doomed is a process that dies when it has passed a point as often as was decided at its birth.
type doomed struct {
	*process
	total *tally.Tally
	death string
	stop  context.CancelFunc // ends the consumer's Run

	consumer *inbox.Consumer

	mu    sync.Mutex
	after int
	over  bool // it is dead, or will not die any more
}

// newDoomed returns a process for one life of a consumer, with its death in the dice.
func (r *round) newDoomed(random *rand.Rand, stop context.CancelFunc) *doomed {
	d := &doomed{total: r.total, death: deaths[random.IntN(len(deaths))], stop: stop, after: 1 + random.IntN(3)}
	d.process = newProcess(r.T, r.db.URL, func(config *pgxpool.Config) { config.ConnConfig.Tracer = d })
	d.asked = func(request kmsg.Key, w *wire) {
		if request != kmsg.OffsetCommit {
			return
		}
		d.dies(beforeOffsets)
		d.deafens(offsetsUnheard, w)
	}
	return d
}

// dies kills the process if its point of death is at, and its time has come.
func (d *doomed) dies(at string) {
	if !d.comes(at) {
		return
	}
	if at != told {
		d.kill()
	}
	d.stop()
}

// deafens has the process die of the next answer on w.
func (d *doomed) deafens(at string, w *wire) {
	if d.comes(at) {
		w.deaf.Store(true)
		d.stop()
	}
}

func (d *doomed) comes(at string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over || d.death != at {
		return false
	}
	if d.after--; d.after > 0 {
		return false
	}
	d.over = true
	d.total.Add(at, 1)
	return true
}

// spare lets the process live.
func (d *doomed) spare() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
}

// statement is the key of a statement's text in its context.
type statement struct{}

// TraceQueryStart is pgx.QueryTracer.
func (d *doomed) TraceQueryStart(ctx context.Context, conn *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	switch {
	case strings.Contains(q.SQL, "INSERT INTO processed_messages"):
		d.dies(beforeDedup)
	case q.SQL == "commit":
		d.dies(told)
		d.dies(beforeCommit)
		if w, ok := conn.PgConn().Conn().(*wire); ok {
			d.deafens(commitUnheard, w)
		}
	}
	return context.WithValue(ctx, statement{}, q.SQL)
}

// TraceQueryEnd is pgx.QueryTracer.
func (d *doomed) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(statement{}).(string)
	switch {
	case q.Err != nil:
	case strings.Contains(sql, "INSERT INTO processed_messages"):
		d.dies(dedupped)
	case strings.Contains(sql, "FOR KEY SHARE"):
		d.dies(looked)
	case strings.Contains(sql, "lease_token = $4") && strings.Contains(sql, "FOR UPDATE"):
		d.dies(fenced)
	case sql == "commit":
		d.dies(committedIt)
	}
}

// TraceBatchStart is pgx.BatchTracer: messages are parked in batches.
func (d *doomed) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	d.dies(beforePark)
	return ctx
}

// TraceBatchQuery is pgx.BatchTracer.
func (d *doomed) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is pgx.BatchTracer.
func (d *doomed) TraceBatchEnd(_ context.Context, _ *pgx.Conn, q pgx.TraceBatchEndData) {
	if q.Err == nil {
		d.dies(parkedIt)
	}
}
