package inbox

import (
	"context"
	"time"
)

// reclaimLoop makes the inbox forget, once an hour: it empties the leaf of processed_messages whose day is over, or deletes
// old rows where there is no ring. Every consumer does it; the first one finds work.
func (c *Consumer) reclaimLoop(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	reclaim := c.emptyLeaf
	if c.opts.AnyID {
		reclaim = c.deleteOld
	}
	for {
		did, err := reclaim(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.opts.Log.WarnContext(ctx, "old processed messages not reclaimed, will retry", "error", err)
		case did:
			c.opts.Log.InfoContext(ctx, "old processed messages reclaimed")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *Consumer) emptyLeaf(ctx context.Context) (emptied bool, err error) {
	err = c.pool.QueryRow(ctx, c.store.sql(`SELECT {inbox_reclaim}()`)).Scan(&emptied)
	return emptied, err
}

// deletePage is how many old rows are deleted in one transaction.
const deletePage = 5000

// deleteOld deletes what is older than Options.Remember, page by page. What is parked stays: it is not over.
func (c *Consumer) deleteOld(ctx context.Context) (did bool, err error) {
	for {
		// Rows that another consumer deletes are skipped, not waited for.
		tag, err := c.pool.Exec(ctx, c.store.sql(`
			DELETE FROM {processed_messages}
			WHERE (consumer_group, event_id) IN (
				SELECT consumer_group, event_id FROM {processed_messages}
				WHERE consumer_group = $1 AND state <> 'parked' AND processed_at < now() - $2 * interval '1 millisecond'
				ORDER BY processed_at
				LIMIT $3
				FOR UPDATE SKIP LOCKED)`), c.group, c.opts.Remember.Milliseconds(), deletePage)
		if err != nil {
			return did, err
		}
		if tag.RowsAffected() == 0 {
			return did, nil
		}
		did = true
	}
}
