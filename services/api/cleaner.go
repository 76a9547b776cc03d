package api

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// cleaner forgets stored answers once nobody may ask for them any more, and reports of payments that no provider sends again.
type cleaner struct {
	pool   *pgxpool.Pool
	log    *slog.Logger
	keep   time.Duration // of stored answers
	period time.Duration
}

// keepReports is well over the days for which providers send a report again. One that came again later would be a message of
// its own, which changes nothing at an order that is settled.
const keepReports = 30 * 24 * time.Hour

// cleanPage is how many rows one statement deletes: few enough to hold no lock for long.
const cleanPage = 1000

// Run cleans at once and then every period, until ctx ends.
func (c *cleaner) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.period)
	defer ticker.Stop()
	for {
		for _, old := range []struct {
			table, column string
			keep          time.Duration
		}{{"idempotency_keys", "created_at", c.keep}, {"payment_webhooks", "received_at", keepReports}} {
			if err := c.clean(ctx, old.table, old.column, old.keep); err != nil && ctx.Err() == nil {
				c.log.WarnContext(ctx, "cannot delete old rows, will retry", slog.String("table", old.table), slog.Any("error", err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (c *cleaner) clean(ctx context.Context, table, column string, keep time.Duration) error {
	for {
		tag, err := c.pool.Exec(ctx, `
			DELETE FROM `+table+`
			WHERE ctid = ANY (ARRAY(
				SELECT ctid
				FROM `+table+`
				WHERE `+column+` < now() - make_interval(secs => $1)
				LIMIT $2))`, keep.Seconds(), cleanPage)
		if err != nil {
			return fmt.Errorf("delete old rows of %s: %w", table, err)
		}
		if tag.RowsAffected() < cleanPage {
			return nil
		}
	}
}
