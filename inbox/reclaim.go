package inbox

import (
	"context"
	"time"
)

// reclaimLoop empties the leaf of processed_messages whose day is over, once an hour. Every consumer of the schema
// does it; the first one finds work.
func (c *Consumer) reclaimLoop(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		var emptied bool
		err := c.pool.QueryRow(ctx, c.store.sql(`SELECT {inbox_reclaim}()`)).Scan(&emptied)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.opts.Log.WarnContext(ctx, "old processed messages not reclaimed, will retry", "error", err)
		case emptied:
			c.opts.Log.InfoContext(ctx, "old processed messages reclaimed")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
