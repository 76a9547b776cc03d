package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrInUse is returned by [Forget] for a relay that leads or has parked messages.
var ErrInUse = errors.New("relay is in use")

// Forget removes a relay name with its cursor, so that the ring waits for it no longer. Messages that it has not
// published are not published by it any more; other names are not concerned. by is who asks; it is kept.
//
// Stop the name's relays first. One that stands by is unhealthy from then on; started again, it is a new name, and
// publishes all that the ring holds. Forget returns [ErrInUse] while one leads, and while messages are parked, which it
// would lose: release or discard them. It returns [ErrUnknownRelay] for a name that is not there.
func Forget(ctx context.Context, pool *pgxpool.Pool, schema, relay, by string) error {
	if by == "" {
		return errors.New("forget relay: who asks is required")
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return forget(ctx, tx, schema, relay, by) })
	if err != nil {
		return fmt.Errorf("forget relay %q: %w", relay, err)
	}
	return nil
}

func forget(ctx context.Context, tx pgx.Tx, schema, relay, by string) error {
	// The lock keeps a relay from becoming the leader, and a leader from parking, until this is over.
	var leader string
	err := tx.QueryRow(ctx, `
		SELECT CASE WHEN expires_at > clock_timestamp() THEN holder ELSE '' END
		FROM `+qualified(schema, "outbox_lease")+`
		WHERE relay = $1
		FOR UPDATE`, relay).Scan(&leader)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrUnknownRelay
	}
	if err != nil {
		return err
	}
	if leader != "" {
		return fmt.Errorf("%w: %s leads", ErrInUse, leader)
	}
	var parked int64
	if err := tx.QueryRow(ctx, `
		SELECT count(*)
		FROM `+qualified(schema, "outbox_parked")+`
		WHERE relay = $1 AND state <> 'discarded'`, relay).Scan(&parked); err != nil {
		return err
	}
	if parked > 0 {
		return fmt.Errorf("%w: %d messages are parked", ErrInUse, parked)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM `+qualified(schema, "outbox_lease")+` WHERE relay = $1`, relay); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO `+qualified(schema, "outbox_audit")+` (action, by, relay)
		VALUES ('forget', $1, $2)`, by, relay)
	return err
}
