package inbox

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// leftTo returns which of items are the business of another group: it has parked or discarded them, or they are still to come
// to it behind a held message of their key.
func (s store) leftTo(ctx context.Context, tx pgx.Tx, group, topic string, items []*item) (map[uuid.UUID]bool, error) {
	slots, ids, _ := idColumns(items)
	keys := make([]string, len(items))
	for i, it := range items {
		keys[i] = it.key
	}
	rows, _ := tx.Query(ctx, s.sql(`
		SELECT m.event_id::uuid
		FROM unnest($3::smallint[], $4::text[], $5::text[]) AS m (slot, event_id, key)
		LEFT JOIN {processed_messages} p ON (p.consumer_group, p.event_id, p.slot) = ($1, m.event_id::uuid, m.slot)
		WHERE p.state <> 'done'
		   OR p.state IS NULL AND EXISTS (SELECT FROM {inbox_holds} h WHERE (h.consumer_group, h.topic, h.key) = ($1, $2, m.key))`),
		group, topic, slots, ids, keys) // CollectRows reports the error
	found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("look for what group %s has put aside: %w", group, err)
	}
	theirs := make(map[uuid.UUID]bool, len(found))
	for _, id := range found {
		theirs[id] = true
	}
	return theirs, nil
}

// Fates counts what became of the messages a group has met, as far as it remembers them.
type Fates struct {
	Done, Discarded     int
	Open                int // of the discarded, those left to the group of [Options.Rebuild] that it has not settled yet
	Dead, Held, Waiting int // parked now; see [StateDead]
	Due                 int // keys whose held message is being tried, or may be by this consumer
}

// CountFates counts the fates of the group's messages.
func (c *Consumer) CountFates(ctx context.Context) (f Fates, err error) {
	topics, types := c.routes.routed()
	err = c.pool.QueryRow(ctx, c.store.sql(`
		SELECT p.done, p.discarded, l.open, m.dead, m.held, m.waiting, h.due
		FROM (
			SELECT count(*) FILTER (WHERE state = 'done') AS done, count(*) FILTER (WHERE state = 'discarded') AS discarded
			FROM {processed_messages} WHERE consumer_group = $1
		) p, (
			SELECT count(*) AS open
			FROM {processed_messages} r
			LEFT JOIN {processed_messages} t ON (t.slot, t.consumer_group, t.event_id) = (r.slot, $5, r.event_id)
			WHERE $5 <> '' AND r.consumer_group = $1 AND r.state = 'discarded' AND (t.state IS NULL OR t.state = 'parked')
		) l, (
			SELECT count(*) FILTER (WHERE state = 'dead') AS dead, count(*) FILTER (WHERE state = 'held') AS held,
			       count(*) FILTER (WHERE state = 'waiting') AS waiting
			FROM {parked_messages} WHERE consumer_group = $1
		) m, (
			SELECT count(*) FILTER (WHERE leased_until > clock_timestamp() OR next_at <= clock_timestamp() AND `+readable+`) AS due
			FROM {inbox_holds} WHERE consumer_group = $1 AND state = 'held'
		) h`), c.group, ClassUnsupportedVersion, topics, types, c.opts.Rebuild,
	).Scan(&f.Done, &f.Discarded, &f.Open, &f.Dead, &f.Held, &f.Waiting, &f.Due)
	if err != nil {
		return f, fmt.Errorf("count the fates of group %s: %w", c.group, err)
	}
	return f, nil
}
