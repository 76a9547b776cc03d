package inbox

import (
	"context"
	"log/slog"
	"time"
)

// watch logs why nothing moves, as long as nothing does.
func (c *Consumer) watch(ctx context.Context) {
	tick := time.NewTicker(c.opts.StallAfter)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		finished, waiting := c.lanes.progress()
		if why := c.Why(); finished == before && len(why) > 0 {
			level := slog.LevelWarn
			if waiting == 0 && c.notReady() == "" {
				level = slog.LevelInfo // there is nothing to move
			}
			c.opts.Log.Log(ctx, level, "nothing moves", "why", why)
		}
		before = finished
	}
}

// progress returns how many messages got their fate so far, and how many are in memory without one.
func (l *lanes) progress() (finished int64, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.finished, l.waiting
}
