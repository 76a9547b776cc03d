package inbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// room is how many messages of the group are parked, as far as this process knows: counted once in a while, and added to
// by what it parks itself.
type room struct {
	mu      sync.Mutex
	held    int
	counted time.Time
	told    atomic.Bool // the log knows that there is no room
}

// recount is how long a count is good for.
const recount = time.Second

// take makes the places of n more messages its own, as many as there are below limit, and returns how many. What is taken and
// not used, because the transaction rolls back, is back after the next count.
func (r *room) take(n, limit int, count func() (int, error)) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.counted) >= recount || r.held+n > limit {
		held, err := count()
		if err != nil {
			return 0, err
		}
		r.held, r.counted = held, now
	}
	n = min(n, max(limit-r.held, 0))
	r.held += n
	return n, nil
}

// fitHeld looks for room for the messages that are to be parked. Those without stay in memory, and what follows them of their
// key stays as well.
func (p *pass) fitHeld(ctx context.Context) error {
	var parked []*item
	var keys []string
	for _, it := range p.fresh {
		switch p.fates[it].fate {
		case waiting, heldFate, dead:
			parked, keys = append(parked, it), append(keys, it.key)
		default: // the others take no room
		}
	}
	if len(parked) == 0 {
		return nil
	}
	opts := p.c.opts
	ofKey, err := p.c.store.heldOf(ctx, p.tx, p.route.Topic, keys)
	if err != nil {
		return err
	}
	left, err := p.c.room.take(len(parked), opts.MaxHeld, func() (int, error) { return p.c.store.countHeld(ctx, p.tx, opts.MaxHeld) })
	if err != nil {
		return err
	}
	for _, it := range parked { // once a key finds no room, what follows finds none either
		d := p.fates[it]
		switch {
		case ofKey[it.key] >= opts.MaxHeldPerKey:
			d.full = fmt.Sprintf("%d of its key", ofKey[it.key])
		case left == 0:
			d.full = fmt.Sprintf("%d in all", opts.MaxHeld)
		default:
			ofKey[it.key]++
			left--
			continue
		}
		d.fate, d.retryIn = waits, opts.RetryMin
		p.fates[it] = d
	}
	return nil
}

// noteRoom tells the log and the metrics of messages that found no room, once for all of them.
func (c *Consumer) noteRoom(ctx context.Context, topic string, p *pass) {
	keys := map[string]bool{}
	for it, d := range p.fates {
		if d.full != "" {
			keys[it.key] = true
		}
	}
	if len(keys) > 0 {
		c.meters.noRoom(ctx, topic, len(keys))
	}
	switch n := c.lanes.withoutRoom(); {
	case n > 0 && !c.room.told.Swap(true):
		c.opts.Log.ErrorContext(ctx, "no room for another held message, their keys wait in memory", "topic", topic, "keys", n,
			"max_held", c.opts.MaxHeld, "max_held_per_key", c.opts.MaxHeldPerKey)
	case n == 0 && c.room.told.Swap(false):
		c.opts.Log.InfoContext(ctx, "there is room for held messages again", "topic", topic)
	}
}

// heldOf returns how many messages are held behind each of keys.
func (s store) heldOf(ctx context.Context, tx pgx.Tx, topic string, keys []string) (map[string]int, error) {
	rows, _ := tx.Query(ctx, s.sql(`
		SELECT key, parked FROM {inbox_holds}
		WHERE consumer_group = $1 AND topic = $2 AND key = ANY($3::text[])`), s.group, topic, keys) // ForEachRow reports the error
	held := map[string]int{}
	var key string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&key, &n}, func() error { held[key] = n; return nil }); err != nil {
		return nil, fmt.Errorf("count messages held behind keys: %w", err)
	}
	return held, nil
}

// countHeld returns how many messages of the group are parked, or limit if they are more.
func (s store) countHeld(ctx context.Context, tx pgx.Tx, limit int) (n int, err error) {
	err = tx.QueryRow(ctx, s.sql(`
		SELECT count(*) FROM (SELECT FROM {parked_messages} WHERE consumer_group = $1 LIMIT $2) AS held`), s.group, limit).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count held messages: %w", err)
	}
	return n, nil
}
