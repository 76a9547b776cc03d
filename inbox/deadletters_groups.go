package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ParkedGroup is what parked messages with the same group, type, class and fingerprint have in common: most likely one
// cause. Messages that only wait have neither class nor fingerprint, and are a group for each type.
type ParkedGroup struct {
	Group       string
	Type        string
	Class       string
	Fingerprint string
	Dead, Held  int // messages in this state
	Waiting     int
	Keys        int       // different keys of these messages
	FirstSeen   time.Time // the first failure; of waiting messages, when the first was parked
	LastSeen    time.Time // the last failure; of waiting messages, when the last was parked
	Error       string    // of the message that failed last, as a sample
}

// GroupParked returns the groups of the parked messages that f selects, those with the most dead messages first. It
// looks at all of them: f's Limit is ignored. The pool's search_path says of which schema.
func GroupParked(ctx context.Context, pool *pgxpool.Pool, f Filter) ([]ParkedGroup, error) {
	rows, _ := pool.Query(ctx, `
		SELECT p.consumer_group, p.type, coalesce(p.error_class, ''), coalesce(p.fingerprint, ''),
		       count(*) FILTER (WHERE p.state = 'dead') AS dead,
		       count(*) FILTER (WHERE p.state = 'held'),
		       count(*) FILTER (WHERE p.state = 'waiting'),
		       count(DISTINCT (p.topic, p.key)),
		       min(coalesce(p.first_failed_at, p.parked_at)),
		       max(coalesce(p.last_failed_at, p.parked_at)) AS last_seen,
		       coalesce((array_agg(p.error ORDER BY p.last_failed_at DESC NULLS LAST, p.id DESC))[1], '')
		FROM parked_messages p`+whereParked+`
		GROUP BY 1, 2, 3, 4
		ORDER BY dead DESC, last_seen DESC, 1, 2, 3, 4`, f.args()...) // CollectRows reports the error
	groups, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g ParkedGroup, err error) {
		err = row.Scan(&g.Group, &g.Type, &g.Class, &g.Fingerprint, &g.Dead, &g.Held, &g.Waiting, &g.Keys, &g.FirstSeen, &g.LastSeen, &g.Error)
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("group parked messages: %w", err)
	}
	return groups, nil
}
