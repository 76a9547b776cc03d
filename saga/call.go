package saga

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Call is one call of a remote step: an action, its query or its compensation.
type Call struct {
	// Key is the idempotency key, the same over retries, crashes and replays: "<saga>:<step>:1" for the action and its
	// query, "<saga>:<step>:undo:1" for the compensation. Spaces of the step's name are dashes in it.
	Key string
	// ActionKey is the key of the action, also in a compensation.
	ActionKey string
	// Attempt counts the calls under Key, from 1.
	Attempt int
	// Lost tells how many of them, or of the queries about them, went down with their engine, perhaps before they were sent.
	// The others have had their time to be answered.
	Lost int

	saga   uuid.UUID
	step   int
	name   string
	claim  claim
	saved  json.RawMessage
	result json.RawMessage
	pool   *pgxpool.Pool
	share  func(ctx context.Context, raw json.RawMessage) bool // as [saver.share]
}

// callKey is constant by design: a key per attempt is how one order gets charged twice.
func callKey(id uuid.UUID, step string, undo bool) string {
	name := strings.ReplaceAll(step, " ", "-")
	if undo {
		return fmt.Sprintf("%s:%s:undo:1", id, name)
	}
	return fmt.Sprintf("%s:%s:1", id, name)
}

// Save commits the progress of the step before it goes on: the id of a payment intent, before it is confirmed. The
// step's action, query and compensation share it. It returns [ErrFenced] if the lane was lost meanwhile; the caller
// must then stop.
func (c *Call) Save(ctx context.Context, v any) error {
	raw, err := encode(v)
	if err != nil {
		return err
	}
	return commit(ctx, "save "+c.name, func() error {
		if !c.share(ctx, raw) {
			if err := c.saveAlone(ctx, raw); err != nil {
				return err
			}
		}
		c.saved = raw
		return nil
	})
}

func (c *Call) saveAlone(ctx context.Context, raw json.RawMessage) error {
	// The share lock makes a claim and a save exclude each other: an engine that takes the lane after this has
	// committed reads it, and one that took it before makes it match no row.
	tag, err := c.pool.Exec(ctx, `
		WITH held AS (
			SELECT 1 FROM saga_lanes
			WHERE lane = $1 AND token = $2 AND rev = $3
			FOR SHARE
		)
		UPDATE saga_journal SET saved = $6
		WHERE saga_id = $4 AND step = $5 AND NOT undo AND EXISTS (SELECT FROM held)`,
		c.claim.lane, c.claim.token, c.claim.rev, c.saga, c.step, raw)
	if err != nil {
		return fmt.Errorf("save progress of %s: %w", c.ActionKey, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("save progress of %s: %w", c.ActionKey, ErrFenced)
	}
	return nil
}

// Saved reads what the step last saved into v, and reports whether there is anything.
func (c *Call) Saved(v any) (bool, error) { return decode(c.saved, v) }

// Result reads the action's result into v, and reports whether it is known; in a compensation it is not if the
// action's outcome is unknown.
func (c *Call) Result(v any) (bool, error) { return decode(c.result, v) }

func decode(raw json.RawMessage, v any) (bool, error) {
	if raw == nil {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, Stuck(fmt.Errorf("decode %T: %w", v, err))
	}
	return true, nil
}
