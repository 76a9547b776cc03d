package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// fate is what one transaction does with one message. All but waits are final for its offset.
type fate int

const (
	done fate = iota
	duplicate
	waits   // stays in memory, at the head of its lane or behind it
	waiting // parked behind the head of its key
	heldFate
	dead
	discarded
	left // the business of the group that is rebuilt
)

func (f fate) String() string {
	return [...]string{"done", "duplicate", "waits", "waiting", "held", "dead", "discarded", "left"}[f]
}

// decision is a fate with what belongs to it.
type decision struct {
	fate    fate
	failed  bool // this message failed, others only wait behind it
	kind    kind
	sure    bool
	failure failure
	retryIn time.Duration // of a message that waits
	full    string        // why there was no room to park a message that waits
	nextTry time.Duration // of a held message
	reason  string        // of a discarded one
}

// pass is one transaction over a batch.
type pass struct {
	c       *Consumer
	tx      pgx.Tx
	route   *route
	items   []*item
	guarded bool
	spill   bool
	forced  error // the outcome of the only message, known from its failed commit

	fresh   []*item             // not duplicates, not behind a hold
	fates   map[*item]decision  // by the end, of every item
	blocked map[string]decision // keys with a failed message: what becomes of the rest
	subtx   int
}

// fits makes sure, once, that the table remembers the ids as long as it must: a ring would forget those that have no time
// in them at any time.
func (p *pass) fits(ctx context.Context) error {
	if p.c.fits.Load() {
		return nil
	}
	ring, err := p.c.store.isRing(ctx, p.tx)
	switch {
	case err != nil:
		return err
	case ring && p.c.opts.AnyID:
		return errors.New("processed_messages is a ring, which cannot remember any id: run MigrationsAnyID")
	case !ring && !p.c.opts.AnyID:
		return errors.New("processed_messages is no ring: set Options.AnyID")
	}
	p.c.fits.Store(true)
	return nil
}

// dedup inserts the messages' rows and finds those that were there already.
func (p *pass) dedup(ctx context.Context) error {
	var first, again []*item
	seen := make(map[uuid.UUID]bool, len(p.items))
	for _, it := range p.items {
		if seen[it.dedupID] {
			again = append(again, it)
			continue
		}
		seen[it.dedupID] = true
		first = append(first, it)
	}
	parked, err := p.parkedBefore(ctx, first)
	if err != nil {
		return err
	}
	first = slices.DeleteFunc(first, func(it *item) bool { return parked[it.dedupID] })
	fresh, err := p.c.store.remember(ctx, p.tx, first)
	if err != nil {
		return err
	}
	for _, it := range first {
		if !fresh[it.dedupID] {
			again = append(again, it)
		}
	}
	conflicts, err := p.conflicts(ctx, again)
	if err != nil {
		return err
	}
	isAgain := make(map[*item]bool, len(again))
	for _, it := range again {
		isAgain[it] = true
	}
	for _, it := range p.items {
		switch {
		case parked[it.dedupID], isAgain[it] && !conflicts[it]:
			p.fates[it] = decision{fate: duplicate}
		default:
			p.fresh = append(p.fresh, it)
		}
	}
	return nil
}

// parkedBefore returns which of items are parked already, of those that processed_messages may have forgotten.
func (p *pass) parkedBefore(ctx context.Context, items []*item) (map[uuid.UUID]bool, error) {
	var expired []*item
	for _, it := range items {
		if it.expired {
			expired = append(expired, it)
		}
	}
	if len(expired) == 0 {
		return nil, nil
	}
	return p.c.store.parkedAlready(ctx, p.tx, expired)
}

// conflicts finds messages whose id belongs to another payload. Such a message is never applied: it gets an id of its
// own, and a verdict.
func (p *pass) conflicts(ctx context.Context, again []*item) (map[*item]bool, error) {
	if len(again) == 0 {
		return nil, nil
	}
	known, err := p.c.store.hashes(ctx, p.tx, again)
	if err != nil {
		return nil, err
	}
	var conflicting []*item
	for _, it := range again {
		if hash, ok := known[it.dedupID]; ok && hash != string(it.hash) {
			it.verdict = malformed(ClassIDConflict, errors.New("the id belongs to a message with another payload"))
			it.dedupID = placeID(it)
			it.expired = !p.c.opts.AnyID && beyondHorizon(it.dedupID, time.Now())
			conflicting = append(conflicting, it)
		}
	}
	if len(conflicting) == 0 {
		return nil, nil
	}
	parked, err := p.parkedBefore(ctx, conflicting)
	if err != nil {
		return nil, err
	}
	conflicting = slices.DeleteFunc(conflicting, func(it *item) bool { return parked[it.dedupID] })
	fresh, err := p.c.store.remember(ctx, p.tx, conflicting)
	if err != nil {
		return nil, err
	}
	conflicts := map[*item]bool{}
	for _, it := range conflicting {
		conflicts[it] = fresh[it.dedupID]
	}
	return conflicts, nil
}

// holds sends messages of held keys behind their hold.
func (p *pass) holds(ctx context.Context) error {
	if len(p.fresh) == 0 {
		return nil
	}
	keys := make([]string, 0, len(p.fresh))
	for _, it := range p.fresh {
		keys = append(keys, it.key)
	}
	slices.Sort(keys)
	held, err := p.c.store.heldKeys(ctx, p.tx, p.route.Topic, slices.Compact(keys))
	if err != nil || len(held) == 0 {
		return err
	}
	for key := range held {
		p.blocked[key] = decision{fate: waiting}
	}
	return nil
}

// leave takes out the messages that the rebuilt group still has to deal with, or was told to drop. They are remembered as
// discarded by this group.
func (p *pass) leave(ctx context.Context) error {
	if p.c.opts.Rebuild == "" || len(p.fresh) == 0 {
		return nil
	}
	theirs, err := p.c.store.leftTo(ctx, p.tx, p.c.opts.Rebuild, p.route.Topic, p.fresh)
	if err != nil || len(theirs) == 0 {
		return err
	}
	var dropped []*item
	p.fresh = slices.DeleteFunc(p.fresh, func(it *item) bool {
		if !theirs[it.dedupID] {
			return false
		}
		p.fates[it] = decision{fate: left}
		dropped = append(dropped, it)
		return true
	})
	return p.c.store.settle(ctx, p.tx, dropped, "discarded")
}

// settle writes the fates that are not done.
func (p *pass) settle(ctx context.Context) error {
	if err := p.fitHeld(ctx); err != nil {
		return err
	}
	var undo, parked, dropped []*item
	var parkings []parking
	for _, it := range p.fresh {
		d := p.fates[it]
		switch d.fate {
		case waits:
			undo = append(undo, it)
		case waiting, heldFate, dead:
			parked = append(parked, it)
			parkings = append(parkings, p.parking(it, d))
		case discarded:
			dropped = append(dropped, it)
		case done, duplicate, left: // as they are
		}
	}
	st := p.c.store
	if len(undo) > 0 {
		if err := st.forget(ctx, p.tx, undo); err != nil {
			return err
		}
	}
	if len(dropped) > 0 {
		if err := st.settle(ctx, p.tx, dropped, "discarded"); err != nil {
			return err
		}
	}
	for _, it := range dropped {
		if err := st.audit(ctx, p.tx, auditRow{
			action: "discard", topic: it.msg.Topic, key: it.key, eventID: it.dedupID, reason: p.fates[it].reason, by: "handler",
		}); err != nil {
			return err
		}
	}
	if len(parked) == 0 {
		return nil
	}
	if err := st.settle(ctx, p.tx, parked, "parked"); err != nil {
		return err
	}
	return p.park(ctx, parkings)
}

func (p *pass) parking(it *item, d decision) parking {
	pk := parking{item: it, failure: d.failure, nextTry: d.nextTry}
	switch d.fate {
	case waiting:
		pk.state = StateWaiting
	case heldFate:
		pk.state = StateHeld
	case dead:
		pk.state = StateDead
		pk.release = it.route.Policy == ReleaseKey
	default: // the others are not parked
	}
	return pk
}

// park takes the holds in the order of their keys, so that two owners of a partition do not deadlock; the messages of
// one key stay in order.
func (p *pass) park(ctx context.Context, parkings []parking) error {
	slices.SortStableFunc(parkings, func(a, b parking) int { return strings.Compare(a.item.key, b.item.key) })
	if err := p.c.store.park(ctx, p.tx, parkings); err != nil {
		return err
	}
	var deadOnes []parking
	for _, pk := range parkings {
		if pk.state == StateDead {
			deadOnes = append(deadOnes, pk)
		}
		if pk.state != StateWaiting {
			p.c.logParked(ctx, pk)
		}
	}
	if len(deadOnes) == 0 {
		return nil
	}
	if err := p.c.store.copyDead(ctx, p.tx, deadOnes); err != nil {
		return fmt.Errorf("copy dead letters: %w", err)
	}
	return nil
}
