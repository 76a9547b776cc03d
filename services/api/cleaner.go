package api

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// cleaner forgets stored answers once nobody may ask for them any more.
type cleaner struct {
	pool   *pgxpool.Pool
	log    *slog.Logger
	keep   time.Duration
	period time.Duration
}

// cleanPage is how many rows one statement deletes: few enough to hold no lock for long.
const cleanPage = 1000

// Run cleans at once and then every period, until ctx ends.
func (c *cleaner) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.period)
	defer ticker.Stop()
	for {
		if err := c.clean(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "cannot delete old idempotency keys, will retry", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (c *cleaner) clean(ctx context.Context) error {
	for {
		tag, err := c.pool.Exec(ctx, `
			DELETE FROM idempotency_keys
			WHERE ctid = ANY (ARRAY(
				SELECT ctid
				FROM idempotency_keys
				WHERE created_at < now() - make_interval(secs => $1)
				LIMIT $2))`, c.keep.Seconds(), cleanPage)
		if err != nil {
			return fmt.Errorf("delete old idempotency keys: %w", err)
		}
		if tag.RowsAffected() < cleanPage {
			return nil
		}
	}
}
