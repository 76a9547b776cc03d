package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// AuditEntry is what somebody did to a message instead of applying it.
type AuditEntry struct {
	ID       int64
	At       time.Time
	Action   string // replay, discard, edit or import
	Group    string
	Topic    string
	Key      string
	EventID  uuid.UUID
	ParkedID int64 // 0 when the message was never parked: its handler discarded it
	Reason   string
	By       string // "handler" for a handler's own discard
}

// AuditFilter selects entries of the audit. Empty fields select everything.
type AuditFilter struct {
	Group   string
	Since   time.Time // not before this
	AfterID int64     // for the next page: the last ID seen
	Limit   int       // default 1000
}

// ListAudit returns the entries of inbox_audit that f selects, in the order of their IDs. The pool's search_path says
// of which schema.
func ListAudit(ctx context.Context, pool *pgxpool.Pool, f AuditFilter) ([]AuditEntry, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 1000
	}
	rows, _ := pool.Query(ctx, `
		SELECT id, at, action, consumer_group, topic, key, event_id, coalesce(parked_id, 0), reason, by
		FROM inbox_audit
		WHERE ($1 = '' OR consumer_group = $1) AND at >= $2 AND id > $3
		ORDER BY id
		LIMIT $4`, f.Group, f.Since, f.AfterID, limit) // CollectRows reports the error
	entries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[AuditEntry])
	if err != nil {
		return nil, fmt.Errorf("list the audit: %w", err)
	}
	return entries, nil
}
