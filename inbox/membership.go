package inbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// takePart makes the consumer a member of its group until ctx ends, except while the group is paused; a new one when a topic
// was made anew. It returns the client of the membership that ctx has ended, nil when the group was paused then.
func (c *Consumer) takePart(ctx context.Context) (*kgo.Client, error) {
	for {
		if !c.sitOut(ctx) {
			return nil, nil
		}
		client, err := c.newClient()
		if err != nil {
			return nil, fmt.Errorf("kafka client of group %s: %w", c.group, err)
		}
		member, end := context.WithCancel(ctx)
		var loops sync.WaitGroup
		loops.Go(func() {
			c.fetch(member, client)
			end()
		})
		loops.Go(func() { c.commitLoop(member, client) })
		toPause := c.awaitPause(member)
		end()
		loops.Wait()
		if over := ctx.Err() != nil; over && !toPause {
			return client, nil
		}
		c.stepOut(ctx, client)
	}
}

// pausing is a pause as a consumer sees it.
type pausing struct {
	token      uuid.UUID
	by, reason string
	left       time.Duration
}

// paused returns the pause of the group, nil when it is not paused.
func (c *Consumer) paused(ctx context.Context) (*pausing, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var p pausing
	var left int64
	err := c.pool.QueryRow(ctx, c.store.sql(`
		SELECT token, by, reason, ceil(extract(epoch FROM leased_until - clock_timestamp()) * 1000)::bigint
		FROM {inbox_pauses}
		WHERE consumer_group = $1 AND leased_until > clock_timestamp()`), c.group).Scan(&p.token, &p.by, &p.reason, &left)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look whether group %s is paused: %w", c.group, err)
	}
	p.left = time.Duration(left) * time.Millisecond
	return &p, nil
}

// awaitPause returns true when the group is paused, false when ctx ends. While the database does not answer, the group is not
// paused.
func (c *Consumer) awaitPause(ctx context.Context) bool {
	tick := time.NewTicker(c.opts.PauseEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		p, err := c.paused(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			c.opts.Log.WarnContext(ctx, "a pause of the group would not be seen, will look again", "error", err)
		}
		failing = err != nil
		if p != nil {
			c.opts.Log.InfoContext(ctx, "consumer stops for a pause of its group", "by", p.by, "reason", p.reason)
			return true
		}
	}
}

// sitOut waits while the group is paused, and says so with a heartbeat. It returns false when ctx ends first.
func (c *Consumer) sitOut(ctx context.Context) bool {
	var until time.Time
	for ctx.Err() == nil {
		p, err := c.paused(ctx)
		if p != nil {
			if until.IsZero() {
				c.opts.Log.InfoContext(ctx, "group paused, consumer is no member of it", "by", p.by, "reason", p.reason)
			}
			until = time.Now().Add(p.left)
			why := fmt.Sprintf("paused by %s: %s", p.by, p.reason)
			c.pausedWhy.Store(&why)
			err = c.sayPaused(ctx, p.token)
		}
		// A database that does not answer ends no pause before its lease.
		if p == nil && (err == nil || !time.Now().Before(until)) {
			c.resumed(ctx, until)
			return ctx.Err() == nil
		}
		if err != nil && ctx.Err() == nil {
			c.opts.Log.WarnContext(ctx, "pause of the group not kept up, will retry", "error", err)
		}
		pause(ctx, c.opts.PauseEvery)
	}
	return false
}

func (c *Consumer) sayPaused(ctx context.Context, token uuid.UUID) error {
	host, _ := os.Hostname() // without one the process id has to do
	_, err := c.pool.Exec(ctx, c.store.sql(`
		INSERT INTO {inbox_paused_consumers} (consumer_group, consumer, token, name)
		VALUES ($1, $2::text::uuid, $3::text::uuid, $4)
		ON CONFLICT (consumer_group, consumer) DO UPDATE SET token = excluded.token, seen_at = clock_timestamp()`),
		c.group, c.id.String(), token.String(), fmt.Sprintf("%s, process %d", host, os.Getpid()))
	if err != nil {
		return fmt.Errorf("say that this consumer has stopped: %w", err)
	}
	return nil
}

// resumed takes back what sitOut has said; until is zero when there was no pause.
func (c *Consumer) resumed(ctx context.Context, until time.Time) {
	if until.IsZero() {
		return
	}
	c.pausedWhy.Store(nil)
	c.opts.Log.InfoContext(ctx, "group resumed")
	_, err := c.pool.Exec(ctx, c.store.sql(`DELETE FROM {inbox_paused_consumers} WHERE consumer_group = $1 AND consumer = $2::text::uuid`),
		c.group, c.id.String())
	if err != nil && ctx.Err() == nil {
		// The next pause forgets it.
		c.opts.Log.WarnContext(ctx, "heartbeat of the pause not taken back", "error", err)
	}
}

// stepOut leaves the group, also as a static member: it finishes what is started, commits it, and lets go.
func (c *Consumer) stepOut(ctx context.Context, client *kgo.Client) {
	parts := map[string][]int32{}
	for _, p := range c.current() {
		parts[p.topic] = append(parts[p.topic], p.partition)
	}
	c.revoked(context.WithoutCancel(ctx), client, parts)
	client.CloseAllowingRebalance()
	if err := c.removeStatic(ctx); err != nil && ctx.Err() == nil {
		c.opts.Log.WarnContext(ctx, "static member not removed from its group, it goes when its session ends", "error", err)
	}
	c.joined.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.partitions)
}

// removeStatic takes a static member out of the group: its client has ended without leaving, as for a restart.
func (c *Consumer) removeStatic(ctx context.Context) error {
	if c.opts.InstanceID == "" {
		return nil
	}
	client, err := kgo.NewClient(c.opts.Kafka...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	left, err := kadm.NewClient(client).LeaveGroup(ctx, kadm.LeaveGroup(c.member).InstanceIDs(c.opts.InstanceID).Reason("the group is paused"))
	if err == nil {
		err = left.Error()
	}
	if errors.Is(err, kerr.UnknownMemberID) { // its session has ended before
		return nil
	}
	return err
}
