package verify

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/test/system"
)

// AtRest waits until nothing is left to do: every order has ended or waits for a person, every email is settled, every
// message is published, and no group has anything to read. It returns what is still moving when limit has passed.
func AtRest(ctx context.Context, t Target, limit time.Duration) error {
	// Twice in a row: what is between two places, in neither's table, is seen in one of two looks.
	quiet := 0
	return system.Await(ctx, limit, func() error {
		if err := t.moving(ctx); err != nil {
			quiet = 0
			return err
		}
		if quiet++; quiet < 2 {
			return fmt.Errorf("at rest, but only just")
		}
		return nil
	})
}

// moving says what is not at rest.
func (t Target) moving(ctx context.Context) error {
	var orders, sagas, emails, packing int64
	err := t.DB.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM orders.orders o WHERE o.status IN ('pending', 'completed')
				AND NOT EXISTS (SELECT FROM orders.saga_instances s WHERE s.id = o.id AND s.state IN ('in_doubt', 'stuck'))
				AND NOT EXISTS (SELECT FROM orders.parked_messages p WHERE p.key = o.user_id)
				AND NOT EXISTS (SELECT FROM warehouse.parked_messages p WHERE p.key = o.user_id)),
			(SELECT count(*) FROM orders.saga_instances s WHERE s.state IN ('waiting', 'running', 'compensating')
				AND NOT EXISTS (SELECT FROM orders.saga_instances h WHERE h.lane = s.lane AND h.state IN ('in_doubt', 'stuck'))),
			(SELECT count(*) FROM email.emails WHERE state IN ('queued', 'sending')),
			(SELECT count(*) FROM warehouse.shipments WHERE state = 'packing')`).Scan(&orders, &sagas, &emails, &packing)
	if err != nil {
		return fmt.Errorf("look at the tables: %w", err)
	}
	if orders+sagas+emails+packing > 0 {
		return fmt.Errorf("%d orders, %d sagas, %d emails, %d shipments are under way", orders, sagas, emails, packing)
	}
	for _, schema := range []string{"orders", "email", "warehouse"} {
		status, err := outbox.Inspect(ctx, t.DB, schema)
		if err != nil {
			return fmt.Errorf("look at the outbox of %s: %w", schema, err)
		}
		for _, relay := range status.Relays {
			if relay.Backlog > 0 {
				return fmt.Errorf("outbox of %s: %d messages are not published", schema, relay.Backlog)
			}
		}
	}
	lags, err := kadm.NewClient(t.Kafka).Lag(ctx, "order", "email", "warehouse")
	if err != nil {
		return fmt.Errorf("look at the groups: %w", err)
	}
	for _, group := range lags.Sorted() {
		if err := group.Error(); err != nil {
			return fmt.Errorf("look at group %s: %w", group.Group, err)
		}
		if n := group.Lag.Total(); n > 0 {
			return fmt.Errorf("group %s is %d records behind", group.Group, n)
		}
	}
	return nil
}
