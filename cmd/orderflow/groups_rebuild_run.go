package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafka"
)

// rebuildDoc is what a rebuild did, as JSON shows it. What is open, held, waiting and dead is so under the name now, whichever
// run has left or parked it.
type rebuildDoc struct {
	Group    string `json:"group"`
	As       string `json:"as"`
	CameBack int    `json:"came_back"`   // messages with an effect that was missing
	Was      int    `json:"done_before"` // messages whose effects were all there
	Left     int    `json:"left"`        // to the group: parked or discarded there, or behind a held key
	Open     int    `json:"open"`        // of those left to the group, what it has neither done nor discarded
	Held     int    `json:"held"`
	Waiting  int    `json:"waiting"`
	Dead     int    `json:"dead"`
}

const goesOn = "the same command goes on where this one stopped"

// run runs a consumer of the name until it has read what was there, and prints what it did.
func (r *rebuild) run(ctx context.Context, out *output) error {
	var counted string
	if err := r.pool.QueryRow(ctx, `SHOW track_counts`).Scan(&counted); err != nil {
		return fmt.Errorf("look how Postgres is set: %w", err)
	}
	if counted != "on" {
		return fail(exitFailure, "set track_counts = on", "Postgres counts no rows, and by them it is told what came back")
	}
	consumer, err := r.newConsumer()
	if err != nil {
		return err
	}
	before, err := consumer.CountFates(ctx)
	if err != nil {
		return err
	}
	if _, err := inbox.Retry(ctx, r.pool, inbox.Filter{Group: r.as}); err != nil {
		return err
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	var loops errgroup.Group
	loops.Go(func() error { defer stop(); return consumer.Run(work) })
	followed := r.follow(work, consumer)
	stop()
	if err := loops.Wait(); err != nil {
		return err
	}
	// Also after an interrupt, which has ended ctx.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	doc, err := r.result(after, consumer, before)
	if err == nil {
		err = one(out, doc, doc.table())
	}
	if ctx.Err() != nil {
		followed = fail(exitInterrupted, goesOn, "interrupted")
	}
	if followed != nil && err != nil {
		r.cmd.PrintErrf("what was done is not known: %v\n", err)
	}
	return cmp.Or(followed, err, doc.verdict())
}

func (r *rebuild) newConsumer() (*inbox.Consumer, error) {
	r.made.ids = map[uuid.UUID]bool{}
	routes := make([]inbox.Route, len(r.routes))
	for i, rt := range r.routes {
		routes[i] = r.made.watch(rt)
	}
	return inbox.NewConsumer(r.pool, r.as, routes, inbox.Options{
		Kafka: r.client.Opts(), Rebuild: r.group, DLQTopic: r.group + ".dlq",
		DrainTimeout: min(r.timeout, 20*time.Second), // what has not moved for the timeout is not waited for
	})
}

// reading is how far a rebuild is.
type reading struct {
	read, total int64 // records
	due         int   // held keys that are tried or may be; counted once everything is read
}

func (p reading) String() string {
	if p.read < p.total {
		return fmt.Sprintf("%d of %d records are not done", p.total-p.read, p.total)
	}
	return fmt.Sprintf("everything is read, and the messages of %d held keys are to be tried", p.due)
}

func (r *rebuild) look(ctx context.Context, consumer *inbox.Consumer) (p reading, err error) {
	committed, err := kafka.Committed(ctx, r.client, r.as)
	if err != nil {
		return p, err
	}
	p.total = r.records()
	for _, m := range r.moves {
		o, _ := committed.Lookup(m.Topic, m.Partition)
		p.read += min(max(o.At, m.To), m.From) - m.To
	}
	if p.read < p.total {
		return p, nil
	}
	fates, err := consumer.CountFates(ctx)
	p.due = fates.Due
	return p, err
}

// follow shows how far the consumer is, until it has committed what was to be read and no held key is due.
func (r *rebuild) follow(ctx context.Context, consumer *inbox.Consumer) error {
	show := newProgress(r.cmd.ErrOrStderr())
	defer show.end()
	at, best, moved := reading{total: r.records()}, int64(-1), time.Now()
	for {
		p, err := r.look(ctx, consumer)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			at = p
			show.at(int(p.read), int(p.total), "records")
			if p.read == p.total && p.due == 0 {
				return nil
			}
			if p.read-int64(p.due) > best {
				best, moved = p.read-int64(p.due), time.Now()
			}
		}
		if time.Since(moved) > r.timeout {
			show.end()
			why := consumer.Why()
			if err != nil {
				why = append(why, err.Error())
			}
			return fail(exitTimeout, goesOn+"; --timeout has it wait longer", "nothing has moved for %v: %s",
				r.timeout, strings.Join(append([]string{at.String()}, why...), "; "))
		}
		if !sleep(ctx, lookEvery) {
			return ctx.Err()
		}
	}
}

func (r *rebuild) result(ctx context.Context, consumer *inbox.Consumer, before inbox.Fates) (rebuildDoc, error) {
	after, err := consumer.CountFates(ctx)
	if err != nil {
		return rebuildDoc{}, err
	}
	doc := rebuildDoc{
		Group: r.group, As: r.as, Left: after.Discarded - before.Discarded, Open: after.Open,
		Held: after.Held, Waiting: after.Waiting, Dead: after.Dead,
	}
	// Not all that was made was committed.
	for ids := range slices.Chunk(slices.Collect(maps.Keys(r.made.ids)), chunk) {
		n, err := inbox.CountProcessed(ctx, r.pool, r.as, ids)
		if err != nil {
			return doc, err
		}
		doc.CameBack += n
	}
	doc.Was = after.Done - before.Done - doc.CameBack
	return doc, nil
}

// verdict is what a rebuild that came to its end has to say: it has done nothing about these messages.
func (d rebuildDoc) verdict() error {
	var not, hints []string
	if d.Held+d.Waiting+d.Dead > 0 {
		not = append(not, fmt.Sprintf("%d messages are held, %d wait behind others of their key, %d are dead", d.Held, d.Waiting, d.Dead))
		hints = append(hints, "`orderflow dlq list --group "+d.As+"` shows them; the same command tries again what is held, `orderflow dlq replay` makes dead ones held")
	}
	if d.Open > 0 {
		not = append(not, fmt.Sprintf("%d are left to group %s, which has parked them or is to meet them behind a held key", d.Open, d.Group))
		hints = append(hints, "`orderflow dlq list --group "+d.Group+"` shows what it has parked; it does the rest itself when those are replayed or discarded")
	}
	if not == nil {
		return nil
	}
	return fail(exitPartial, strings.Join(hints, "\n"), "not all is made again: %s", strings.Join(not, "; "))
}

func (d rebuildDoc) table() *table {
	t := &table{header: []string{"CAME BACK", "DONE BEFORE", "LEFT TO " + strings.ToUpper(d.Group), "OPEN THERE", "HELD", "WAITING", "DEAD"}}
	style := func(n int) cell {
		if n > 0 {
			return cell{fmt.Sprint(n), "warn"}
		}
		return cell{text: "0"}
	}
	t.add(cell{fmt.Sprint(d.CameBack), "good"}, d.Was, d.Left, style(d.Open), style(d.Held), style(d.Waiting), style(d.Dead))
	return t
}

// made notes the messages whose handlers have inserted rows: their effects were missing.
type made struct {
	mu  sync.Mutex
	ids map[uuid.UUID]bool
}

func (m *made) note(id uuid.UUID, inserted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if inserted {
		m.ids[id] = true
	} else {
		delete(m.ids, id) // of a try that was rolled back
	}
}

// watch returns a route that looks what its handler inserts.
func (m *made) watch(rt inbox.Route) inbox.Route {
	if handle := rt.Handle; handle != nil {
		rt.Handle = func(ctx context.Context, tx pgx.Tx, msg inbox.Message) error {
			return m.each(ctx, tx, []inbox.Message{msg}, func(msgs []inbox.Message) error { return handle(ctx, tx, msgs[0]) })
		}
		return rt
	}
	handle := rt.HandleBatch
	rt.HandleBatch = func(ctx context.Context, tx pgx.Tx, msgs []inbox.Message) error {
		return m.batch(ctx, tx, msgs, func(msgs []inbox.Message) error { return handle(ctx, tx, msgs) })
	}
	return rt
}

// batch runs all messages at once and, if that has inserted anything, one by one instead, to know for which.
func (m *made) batch(ctx context.Context, tx pgx.Tx, msgs []inbox.Message, handle func([]inbox.Message) error) error {
	if len(msgs) == 1 {
		return m.each(ctx, tx, msgs, handle)
	}
	before, err := inserted(ctx, tx)
	if err != nil {
		return err
	}
	again, err := tx.Begin(ctx) // a savepoint
	if err != nil {
		return fmt.Errorf("savepoint: %w", err)
	}
	if err := handle(msgs); err != nil {
		return err // the consumer rolls back
	}
	after, err := inserted(ctx, tx)
	if err != nil {
		return err
	}
	if after == before {
		for _, msg := range msgs {
			m.note(msg.ID, false)
		}
		return again.Commit(ctx)
	}
	if err := again.Rollback(ctx); err != nil {
		return fmt.Errorf("roll back to savepoint: %w", err)
	}
	return m.each(ctx, tx, msgs, handle)
}

func (m *made) each(ctx context.Context, tx pgx.Tx, msgs []inbox.Message, handle func([]inbox.Message) error) error {
	before, err := inserted(ctx, tx)
	if err != nil {
		return err
	}
	for i := range msgs {
		m.note(msgs[i].ID, false)
		if err := handle(msgs[i : i+1]); err != nil {
			return err
		}
		after, err := inserted(ctx, tx)
		if err != nil {
			return err
		}
		m.note(msgs[i].ID, after > before)
		before = after
	}
	return nil
}

// inserted returns how many rows the transaction has inserted into the schema so far, also those that were rolled back to a
// savepoint. The lanes of sagas come and go, and are no effect.
func inserted(ctx context.Context, tx pgx.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT coalesce(sum(pg_stat_get_xact_tuples_inserted(oid)), 0)::bigint
		FROM pg_class
		WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname <> 'saga_lanes'`).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count inserted rows: %w", err)
	}
	return n, nil
}
