package inbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Retry makes the keys due whose held messages f selects: they are tried now, instead of up to [Options.RetryMax] from now. It
// returns how many keys. It is for when the cause is mended: a handler that failed so many messages permanently that they were
// not believed has been replaced, or a provider that asked for an hour is back. The tries before count as they did.
func Retry(ctx context.Context, pool *pgxpool.Pool, f Filter) (int, error) {
	f.State = StateHeld
	// In the order in which consumers lock them.
	tag, err := pool.Exec(ctx, `
		WITH due AS (
			SELECT h.consumer_group, h.topic, h.key
			FROM inbox_holds h
			JOIN parked_messages p ON (p.consumer_group, p.topic, p.hold_key) = (h.consumer_group, h.topic, h.key)`+whereParked+`
			  AND h.state = 'held'
			ORDER BY h.consumer_group, h.topic, h.key
			FOR NO KEY UPDATE OF h
		)
		UPDATE inbox_holds h SET next_at = now()
		FROM due
		WHERE (h.consumer_group, h.topic, h.key) = (due.consumer_group, due.topic, due.key)`, f.args()...)
	if err != nil {
		return 0, fmt.Errorf("make held keys due: %w", err)
	}
	return int(tag.RowsAffected()), nil
}
