package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// inTheRing is true for an order whose messages an outbox must still have. It keeps them for an hour after they were
// published; ten minutes are for the check itself.
const inTheRing = `o.created_at > now() - interval '50 min'`

// rules are the invariants that SQL alone can check. Each query returns one text per violation.
var rules = []struct {
	invariant, what, query string
}{
	{"I3", "an order that belongs to no idempotency key, or a key with two orders", `
		SELECT 'order ' || o.id
		FROM orders.orders o
		LEFT JOIN orders.idempotency_keys k ON k.user_id = o.user_id AND k.location = '/v1/orders/' || o.id
		GROUP BY o.id
		HAVING count(k.key) <> 1`},

	{"I4", "an order that has not ended and waits for nobody", `
		SELECT 'order ' || o.id || ' is ' || o.status
		FROM orders.orders o
		WHERE o.status IN ('pending', 'completed')
			AND NOT EXISTS (SELECT FROM orders.saga_instances s WHERE s.id = o.id AND s.state IN ('in_doubt', 'stuck'))
			AND NOT EXISTS (SELECT FROM orders.parked_messages p WHERE p.key = o.user_id)
			AND NOT EXISTS (SELECT FROM warehouse.parked_messages p WHERE p.key = o.user_id)`},

	{"I5", "a history that is not a chain of legal changes up to the order's status", `
		SELECT 'order ' || o.id || ' is ' || o.status || ' at version ' || o.version || ', history ' || h.path
		FROM orders.orders o
		LEFT JOIN (
			SELECT order_id, count(*) AS n, max(version) AS last, string_agg(to_status, ' ' ORDER BY version) AS path,
				(array_agg(to_status ORDER BY version DESC))[1] AS status,
				bool_and(from_status IS NOT DISTINCT FROM before) AS linked
			FROM (
				SELECT *, lag(to_status) OVER (PARTITION BY order_id ORDER BY version) AS before
				FROM orders.order_history
			) steps
			GROUP BY order_id
		) h ON h.order_id = o.id
		WHERE h.order_id IS NULL OR h.n <> o.version OR h.last <> o.version OR h.status <> o.status OR NOT h.linked`},

	{"I6", "an order without exactly one order.placed in the outbox", `
		SELECT 'order ' || coalesce(o.id::text, m.order_id) || ' has ' || coalesce(m.n, 0)
		FROM orders.orders o
		FULL JOIN (
			SELECT convert_from(payload, 'UTF8')::jsonb ->> 'order_id' AS order_id, count(*) AS n
			FROM orders.outbox
			WHERE topic = 'orders' AND type = 'order.placed.v1'
			GROUP BY 1
		) m ON m.order_id = o.id::text
		WHERE o.id IS NULL OR m.n > 1 OR (m.n IS NULL AND ` + inTheRing + `)`},

	{"I6", "an ended order without exactly one message that tells of it", `
		SELECT 'order ' || o.id || ' is ' || o.status || ' and has ' || coalesce(m.types, 'none')
		FROM orders.orders o
		LEFT JOIN (
			SELECT convert_from(payload, 'UTF8')::jsonb ->> 'order_id' AS order_id, string_agg(type, ' ' ORDER BY type) AS types
			FROM orders.outbox
			WHERE topic IN ('orders.completed', 'orders.failed')
			GROUP BY 1
		) m ON m.order_id = o.id::text
		WHERE (m.types IS NOT NULL OR ` + inTheRing + `)
			AND m.types IS DISTINCT FROM CASE
				WHEN o.status IN ('completed', 'shipped') THEN 'order.completed.v1'
				WHEN o.status = 'refunded' THEN 'order.completed.v1 order.refunded.v1'
				WHEN o.status IN ('rejected', 'payment_failed', 'cancelled') THEN 'order.failed.v1' END`},

	{"I10", "a parked fate without a parked message, or the other way round", fates("orders") +
		" UNION ALL " + fates("email") + " UNION ALL " + fates("warehouse")},

	{"I13", "money that does not match the order", `
		SELECT 'order ' || o.id || ' is ' || o.status || ' over ' || o.total || ', its payment is ' || coalesce(p.status || ' over ' || p.amount, 'missing')
		FROM orders.orders o
		LEFT JOIN orders.payments p ON p.order_id = o.id
		WHERE p.amount <> o.total OR p.currency <> o.currency
			OR (o.status IN ('completed', 'shipped')) <> (coalesce(p.status, '') = 'charged')`},

	{"I15", "stock that does not add up", `
		SELECT s.sku || ': initial ' || s.initial || ', available ' || s.available || ', reserved ' || s.reserved || ', shipped ' || s.shipped
			|| '; held ' || coalesce(r.held, 0) || ', handed over ' || coalesce(r.shipped, 0)
		FROM orders.stock s
		LEFT JOIN (
			SELECT sku, sum(quantity) FILTER (WHERE state = 'held') AS held, sum(quantity) FILTER (WHERE state = 'shipped') AS shipped
			FROM orders.reservations
			GROUP BY sku
		) r USING (sku)
		WHERE s.initial <> s.available + s.reserved + s.shipped OR least(s.available, s.reserved, s.shipped) < 0
			OR s.reserved <> coalesce(r.held, 0) OR s.shipped <> coalesce(r.shipped, 0)`},

	{"I15", "stock that is not the sum of its moves", `
		SELECT s.sku || ': initial ' || s.initial || ', available ' || s.available || ', reserved ' || s.reserved || ', shipped ' || s.shipped
			|| '; moved: reserve ' || m.reserve || ', release ' || m.release || ', ship ' || m.ship
		FROM orders.stock s
		JOIN (
			SELECT s.sku, coalesce(sum(quantity) FILTER (WHERE kind = 'reserve'), 0) AS reserve,
				coalesce(sum(quantity) FILTER (WHERE kind = 'release'), 0) AS release,
				coalesce(sum(quantity) FILTER (WHERE kind = 'ship'), 0) AS ship
			FROM orders.stock s
			LEFT JOIN orders.stock_moves USING (sku)
			GROUP BY s.sku
		) m USING (sku)
		WHERE s.available <> s.initial - m.reserve + m.release OR s.reserved <> m.reserve - m.release - m.ship OR s.shipped <> m.ship`},

	{"I15", "an order that was shipped and kept its stock, or the other way round", `
		SELECT 'order ' || o.id || ' is ' || o.status || ', ' || i.sku || ' is ' || coalesce(r.state || ' ' || r.quantity, 'not reserved')
		FROM orders.orders o
		JOIN orders.order_items i ON i.order_id = o.id
		LEFT JOIN orders.reservations r ON r.order_id = i.order_id AND r.sku = i.sku
		WHERE CASE o.status
			WHEN 'refunded' THEN coalesce(r.state, '') NOT IN ('shipped', 'released') OR r.quantity <> i.quantity
			ELSE (o.status = 'shipped') <> (coalesce(r.state, '') = 'shipped' AND r.quantity = i.quantity) END`},

	{"I16", "a reservation that is held at rest", `
		SELECT 'order ' || r.order_id || ' holds ' || r.quantity || ' ' || r.sku
		FROM orders.reservations r
		JOIN orders.orders o ON o.id = r.order_id
		WHERE r.state = 'held' AND o.status <> 'completed'`},

	{"I17", "an email that was not written exactly as the order asks", `
		SELECT 'order ' || coalesce(w.id, e.order_id) || ': ' || coalesce(w.kind, e.kind) || ' is ' || coalesce(e.state, 'missing')
			|| CASE WHEN w.id IS NULL THEN ' and unasked for' ELSE '' END
		FROM (
			SELECT o.id, unnest(CASE
				WHEN o.status = 'shipped' THEN ARRAY['confirmation', 'shipped']
				WHEN o.status = 'completed' THEN ARRAY['confirmation']
				WHEN o.status = 'refunded' AND s.state = 'shipped' THEN ARRAY['confirmation', 'shipped', 'refund']
				WHEN o.status = 'refunded' THEN ARRAY['confirmation', 'refund']
				WHEN o.status IN ('rejected', 'payment_failed', 'cancelled') THEN ARRAY['failure'] END) AS kind
			FROM orders.orders o
			LEFT JOIN warehouse.shipments s ON s.order_id = o.id
		) w
		FULL JOIN email.emails e ON e.order_id = w.id AND e.kind = w.kind
		WHERE w.id IS NULL OR e.state IS DISTINCT FROM 'sent'`},

	{"I18", "a refunded order whose shipment does not match its stock", `
		SELECT 'order ' || o.id || ': its shipment is ' || coalesce(s.state, 'missing') || ', ' || r.sku || ' is ' || r.state
		FROM orders.orders o
		JOIN orders.reservations r ON r.order_id = o.id
		LEFT JOIN warehouse.shipments s ON s.order_id = o.id
		WHERE o.status = 'refunded' AND r.state IS DISTINCT FROM CASE s.state WHEN 'shipped' THEN 'shipped' WHEN 'cancelled' THEN 'released' END`},

	{"I13", "a refund that does not match its order", `
		SELECT 'order ' || o.id || ' is ' || o.status || ', its refund is ' || r.state
		FROM orders.refunds r
		JOIN orders.orders o ON o.id = r.order_id
		WHERE r.state = 'requested'
			OR (o.status = 'refunded') <> EXISTS (SELECT FROM orders.refunds p WHERE p.order_id = o.id AND p.state = 'paid')`},

	{"I18", "a shipment that does not match the order", `
		SELECT 'order ' || coalesce(o.id, s.order_id) || ' is ' || coalesce(o.status, 'unknown') || ', its shipment is ' || coalesce(s.state, 'missing')
		FROM orders.orders o
		FULL JOIN warehouse.shipments s ON s.order_id = o.id
		WHERE o.id IS NULL
			OR (o.status <> 'refunded' AND ((o.status IN ('completed', 'shipped')) <> (s.id IS NOT NULL) OR s.state = 'cancelled'))
			OR (o.status = 'shipped' AND s.state <> 'shipped')`},

	{"I18", "an order that is shipped more than once", `
		SELECT 'order ' || order_id || ' has ' || count(*) || ' shipments'
		FROM warehouse.shipments
		GROUP BY order_id
		HAVING count(*) > 1`},

	{"I18", "a pick list that is not the order's", `
		SELECT 'order ' || s.order_id
		FROM warehouse.shipments s
		WHERE EXISTS (
			(SELECT sku, quantity FROM orders.order_items WHERE order_id = s.order_id
			EXCEPT SELECT sku, quantity FROM warehouse.shipment_items WHERE shipment_id = s.id)
			UNION ALL
			(SELECT sku, quantity FROM warehouse.shipment_items WHERE shipment_id = s.id
			EXCEPT SELECT sku, quantity FROM orders.order_items WHERE order_id = s.order_id)
		)`},

	{"I22", "a saga that is not over", `
		SELECT 'saga ' || id || ' is ' || state || ' at ' || step_name || coalesce(': ' || error, '')
		FROM orders.saga_instances
		WHERE state NOT IN ('completed', 'compensated')`},

	{"I22", "a key that is held", `
		SELECT consumer_group || ' ' || topic || ' ' || key || ': ' || state || ' ' || coalesce(error_class, '')
		FROM (
			TABLE orders.inbox_holds UNION ALL TABLE email.inbox_holds UNION ALL TABLE warehouse.inbox_holds
		) h`},

	{"I22", "a transaction that does nothing", `
		SELECT application_name || ' since ' || (now() - state_change)
		FROM pg_stat_activity
		WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND now() - state_change > interval '5 s'`},
}

// fates compares the fates of one schema's messages with what lies aside.
func fates(schema string) string {
	return fmt.Sprintf(`
		SELECT coalesce(f.consumer_group, p.consumer_group) || ' ' || coalesce(f.event_id, p.event_id)
		FROM (SELECT * FROM %[1]s.processed_messages WHERE state = 'parked') f
		FULL JOIN %[1]s.parked_messages p USING (consumer_group, event_id)
		WHERE f.event_id IS NULL OR p.event_id IS NULL`, schema)
}

func tables(ctx context.Context, t Target) ([]Violation, error) {
	return Tables(ctx, t.DB)
}

// Tables returns what violates invariants in the tables alone, db being the owner of all schemas: the named ones, or all
// without a name. It is for tests in which a part of the system runs, with no Kafka and no warehouse.
func Tables(ctx context.Context, db *pgxpool.Pool, invariants ...string) ([]Violation, error) {
	var found []Violation
	for _, rule := range rules {
		if len(invariants) > 0 && !slices.Contains(invariants, rule.invariant) {
			continue
		}
		rows, _ := db.Query(ctx, rule.query) // CollectRows reports the error
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("check %s (%s): %w", rule.invariant, rule.what, err)
		}
		found = append(found, report(rule.invariant, rule.what, lines)...)
	}
	return found, nil
}
