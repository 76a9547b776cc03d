package outbox

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// How often a leader does what need not be done at every poll.
const (
	checkpointEvery = 50 * time.Millisecond
	settleEvery     = time.Second // released and discarded keys, replays
)

// term is one time of leading: what the leader has in memory. It is dropped on any error and whenever the server is not
// the one that it knew, and built again from the durable cursor.
type term struct {
	r           *Relay
	lease       *lease
	incarnation string
	at          cursor
	n           int64
	parked      map[lane]bool
	order       orderCheck

	durable   cursor    // as it was saved last
	unsaved   time.Time // since when at is ahead of durable in messages; zero if it is not
	broken    bool      // a checkpoint has failed: what is in memory may leave out messages put aside
	replaying bool
	disorder  disorder

	polled, settleDue, tidyDue time.Time
}

// lead publishes until ctx ends, the lease is lost or anything fails. It gives the lease away at the end.
func (r *Relay) lead(ctx context.Context, l *lease) error {
	defer r.release(ctx, l)
	// The incarnation comes first: if the server changes while the rest is read, the first poll finds another one.
	incarnation, err := r.knowServer(ctx)
	if err != nil {
		return err
	}
	if err := r.identify(ctx, l); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() {
		if err := r.keep(ctx, l); err != nil {
			stop(err)
		}
	})
	defer func() {
		stop(nil)
		keeper.Wait()
	}()
	t := &term{r: r, lease: l, incarnation: incarnation}
	err = t.work(ctx)
	if t.broken || t.unsaved.IsZero() || errors.Is(err, errFenced) {
		return err
	}
	// What is acked and not yet saved would be published again by the next leader.
	return errors.Join(err, t.checkpoint(ctx, nil))
}

func (t *term) work(ctx context.Context) error {
	if err := t.load(ctx); err != nil {
		return err
	}
	t.r.metrics.leads(t.lease.epoch)
	defer t.r.metrics.leads(0)
	pause := t.r.opts.MinPoll
	for ctx.Err() == nil {
		if err := t.chores(ctx); err != nil {
			return err
		}
		found, err := t.turn(ctx)
		if err != nil {
			return err
		}
		if found {
			pause = t.r.opts.MinPoll
			t.wait(ctx, 0)
			continue
		}
		if t.wait(ctx, pause) {
			pause = t.r.opts.MinPoll
		} else {
			pause = min(2*pause, t.r.opts.MaxPoll)
		}
	}
	return context.Cause(ctx)
}

// load builds the memory of a term.
func (t *term) load(ctx context.Context) error {
	var err error
	if t.at, err = t.r.loadCursor(ctx); err != nil {
		return err
	}
	t.durable = t.at
	_, err = t.loadParked(ctx)
	return err
}

// turn is one poll and what it finds. It reports whether it found anything.
func (t *term) turn(ctx context.Context) (bool, error) {
	if t.at.cur != "" {
		return true, t.window(ctx)
	}
	t.polled = time.Now()
	found, err := t.r.poll(ctx, t.at.prev)
	if err != nil {
		return false, err
	}
	if found.incarnation != t.incarnation {
		t.r.log.WarnContext(ctx, "postgres was restarted, crashed, promoted or replaced")
		return false, errFenced
	}
	if found.big {
		t.at.cur, t.at.lastSeq = found.snap, 0
		return true, t.window(ctx)
	}
	if len(found.records) == 0 {
		t.at.prev = found.snap
		return false, nil
	}
	slices.SortFunc(found.records, bySeq)
	aside, err := t.deliver(ctx, found.records)
	if err != nil {
		return false, err
	}
	t.at.prev = found.snap
	t.passed(found.records)
	if len(aside) > 0 || time.Since(t.unsaved) >= checkpointEvery {
		return true, t.checkpoint(ctx, aside)
	}
	return true, nil
}

// passed notes that every record of page is acked or put aside.
func (t *term) passed(page []Record) {
	t.at.hiSeq = max(t.at.hiSeq, page[len(page)-1].Seq)
	t.at.published = time.Now()
	if t.unsaved.IsZero() {
		t.unsaved = t.at.published
	}
}

// wait pauses between two polls, until pause is over, a kick comes or a checkpoint is due. It reports whether it was
// kicked. Polls are at least a millisecond apart, however often it is kicked.
func (t *term) wait(ctx context.Context, pause time.Duration) bool {
	const floor = time.Millisecond
	kicked := false
	if !t.unsaved.IsZero() {
		pause = min(pause, max(0, checkpointEvery-time.Since(t.unsaved)))
	}
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-t.r.kick:
			kicked = true
		}
	}
	if since := time.Since(t.polled); since < floor {
		sleep(ctx, floor-since)
	}
	return kicked
}

// chores are what a leader does between two pages, when nothing is in flight.
func (t *term) chores(ctx context.Context) error {
	if !t.unsaved.IsZero() && time.Since(t.unsaved) >= checkpointEvery {
		if err := t.checkpoint(ctx, nil); err != nil {
			return err
		}
	}
	if t.at.cur != "" {
		return nil
	}
	if now := time.Now(); now.After(t.settleDue) {
		t.settleDue = now.Add(settleEvery)
		if err := t.settle(ctx); err != nil {
			return err
		}
		if err := t.replays(ctx); err != nil {
			return err
		}
	}
	if now := time.Now(); now.After(t.tidyDue) {
		t.tidyDue = now.Add(t.r.tidyEvery)
		return t.tidy(ctx)
	}
	return nil
}

// tidy moves the durable cursor past transactions that wrote nothing here, and gives space back.
func (t *term) tidy(ctx context.Context) error {
	if t.at != t.durable {
		if err := t.checkpoint(ctx, nil); err != nil {
			return err
		}
	}
	if err := t.pruneCursor(ctx); err != nil {
		return err
	}
	return t.r.reclaim(ctx)
}

// fenced runs do in a transaction that commits only if t still leads.
func (t *term) fenced(ctx context.Context, do func(tx pgx.Tx) error) error {
	return t.r.transact(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			SELECT 1 FROM `+t.r.table("outbox_lease")+`
			WHERE relay = $1 AND epoch = $2
			FOR SHARE`, t.r.opts.Name, t.lease.epoch)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			t.r.metrics.fenced(ctx)
			return errFenced
		}
		return do(tx)
	})
}
