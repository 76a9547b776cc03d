package saga

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// NewInstance is a saga to be started.
type NewInstance struct {
	// ID makes Start idempotent: a second start with it changes nothing.
	ID uuid.UUID
	// Lane is what the instance runs in order with, one at a time: the user's id.
	Lane       string
	Definition string
	Version    int
	// Data is kept as JSON and read with [Instance.Decode].
	Data any
}

// Start starts instances when tx commits, in the order in which transactions that start in one lane commit. Call
// [Engine.Kick] after the commit to have them picked up at once.
func Start(ctx context.Context, tx pgx.Tx, starts ...NewInstance) error {
	if len(starts) == 0 {
		return nil
	}
	var (
		ids          uuids
		lanes, names []string
		versions     []int
		data         []string
		distinct     []string
	)
	for _, s := range starts {
		if s.ID == uuid.Nil || s.Lane == "" || s.Definition == "" || s.Version < 1 {
			return fmt.Errorf("start saga %s of %q in lane of %d bytes: id, lane, definition and version are required", s.ID, s.Definition, len(s.Lane))
		}
		raw, err := encode(s.Data)
		if err != nil {
			return fmt.Errorf("start saga %s: %w", s.ID, err)
		}
		if raw == nil {
			raw = []byte("null")
		}
		ids, lanes, names = append(ids, pgID(s.ID)), append(lanes, s.Lane), append(names, s.Definition)
		versions, data = append(versions, s.Version), append(data, string(raw))
		distinct = append(distinct, s.Lane)
	}
	slices.SortFunc(distinct, strings.Compare)
	distinct = slices.Compact(distinct)

	var b pgx.Batch
	// The lane's row is locked before n is drawn, so n follows the order of commits in the lane. Sorted, so that two
	// transactions which start in the same lanes do not deadlock.
	b.Queue(`
		INSERT INTO saga_lanes AS l (lane)
		SELECT lane FROM unnest($1::text[]) WITH ORDINALITY AS t(lane, i) ORDER BY i
		ON CONFLICT (lane) DO UPDATE SET pending = l.pending`, distinct)
	b.Queue(`
		WITH new AS (
			INSERT INTO saga_instances (id, lane, definition, version, data)
			SELECT id, lane, definition, version, data::jsonb
			FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::text[])
				WITH ORDINALITY AS t(id, lane, definition, version, data, i)
			ORDER BY i
			ON CONFLICT (id) DO NOTHING
			RETURNING lane
		), added AS (
			SELECT lane, count(*) AS n FROM new GROUP BY lane
		)
		UPDATE saga_lanes l
		SET pending = l.pending + added.n, run_at = coalesce(l.run_at, clock_timestamp())
		FROM added WHERE l.lane = added.lane`, ids, lanes, names, versions, data)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("start %d sagas: %w", len(starts), err)
	}
	return nil
}

// RequestCancel asks, when tx commits, for the instance to be compensated. It is honoured at the next boundary between
// steps if the pivot has not been passed by then; later it changes nothing. An unknown or finished id is no error.
func RequestCancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) error {
	var b pgx.Batch
	// The lane first, as everyone does. A claimed lane keeps its lease: its engine sees the request at its next write.
	b.Queue(`
		UPDATE saga_lanes
		SET run_at = CASE WHEN token IS NULL AND pending > 0 THEN clock_timestamp() ELSE run_at END
		WHERE lane = (SELECT lane FROM saga_instances WHERE id = $1 AND finished_at IS NULL)`, id)
	b.Queue(`
		UPDATE saga_instances
		SET cancel_requested_at = clock_timestamp()
		WHERE id = $1 AND finished_at IS NULL AND cancel_requested_at IS NULL`, id)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("request cancel of saga %s: %w", id, err)
	}
	return nil
}
