package migrations_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

func TestEveryRoleSeesItsOwnSchema(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for role, want := range map[string]string{
		"orders": "orders", "email": "email", "warehouse": "warehouse",
		"orders_relay": "orders", "email_relay": "email", "warehouse_relay": "warehouse",
	} {
		var got string
		if err := db.RolePool(role).QueryRow(t.Context(), `SELECT current_schema()`).Scan(&got); err != nil || got != want {
			t.Errorf("current schema of %s = %q, %v; want %q", role, got, err, want)
		}
	}
}

const insertMessage = `INSERT INTO outbox (id, topic, key, type, content_type, payload) VALUES (gen_random_uuid(), 't', 'k', 'x.v1', 'application/json', '{}')`

func TestRolesMayDoWhatTheirServiceDoesAndNoMore(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	tests := []struct {
		role, name, sql string
		allowed         bool
	}{
		{"orders", "writes a message", insertMessage, true},
		{"orders", "cannot choose the transaction id, which the relay orders by", `INSERT INTO outbox (txid, id, topic, key, type, content_type, payload) VALUES ('3', gen_random_uuid(), 't', 'k', 'x', 'y', '')`, false},
		{"orders", "cannot choose the sequence", `INSERT INTO outbox (seq, id, topic, key, type, content_type, payload) OVERRIDING SYSTEM VALUE VALUES (1, gen_random_uuid(), 't', 'k', 'x', 'y', '')`, false},
		{"orders", "cannot choose the slot", `INSERT INTO outbox (slot, id, topic, key, type, content_type, payload) VALUES (1, gen_random_uuid(), 't', 'k', 'x', 'y', '')`, false},
		{"orders", "cannot read payloads back", `SELECT payload FROM outbox`, false},
		{"orders", "cannot read a leaf either", `SELECT payload FROM outbox_0`, false},
		{"orders", "cannot delete messages", `DELETE FROM outbox`, false},
		{"orders", "cannot change messages", `UPDATE outbox SET payload = ''`, false},
		{"orders", "cannot truncate the ring", `TRUNCATE outbox`, false},
		{"orders", "cannot take the relay's lease", `UPDATE outbox_lease SET epoch = epoch + 1`, false},
		{"orders", "cannot move the relay's cursor", `DELETE FROM outbox_cursor`, false},
		{"orders", "dedups", `INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state) VALUES (1, 'order', gen_random_uuid(), '', 'done')`, true},
		{"orders", "reclaims the dedup ring", `SELECT inbox_reclaim()`, true},
		{"orders", "cannot empty the dedup table itself", `TRUNCATE processed_messages`, false},
		{"orders", "cannot rewrite what operators did", `DELETE FROM inbox_audit`, false},
		{"orders", "runs sagas", `SELECT FROM saga_lanes FOR UPDATE`, true},
		{"orders", "cannot rewrite what operators did to sagas", `UPDATE saga_audit SET reason = ''`, false},
		{"orders", "cannot rewrite history", `UPDATE order_history SET reason = ''`, false},
		{"orders", "notes a report of a payment", `INSERT INTO payment_webhooks (provider, event_id) VALUES ('sandbox', 'evt_1') ON CONFLICT DO NOTHING`, true},
		{"orders", "forgets an old one", `DELETE FROM payment_webhooks WHERE received_at < now()`, true},
		{"orders", "cannot rewrite what a provider reported", `UPDATE payment_webhooks SET event_id = ''`, false},
		{"orders", "cannot rewrite the ledger of the stock", `UPDATE stock_moves SET quantity = 1`, false},
		{"orders", "cannot tear a page out of it", `DELETE FROM stock_moves`, false},
		{"orders", "cannot delete an order", `DELETE FROM orders`, false},
		{"orders", "cannot change the schema", `CREATE TABLE mine ()`, false},
		{"orders", "cannot use schema public", `CREATE TABLE public.mine ()`, false},
		{"orders", "cannot see the emails", `SELECT FROM email.emails`, false},
		{"orders", "cannot see the shipments", `SELECT FROM warehouse.shipments`, false},
		{"orders", "cannot write another service's messages", `INSERT INTO email.outbox (id, topic, key, type, content_type, payload) VALUES (gen_random_uuid(), 't', 'k', 'x', 'y', '')`, false},
		{"orders", "cannot become its relay", `SET ROLE orders_relay`, false},

		{"orders_relay", "reads messages", `SELECT payload FROM outbox`, true},
		{"orders_relay", "polls", `SELECT * FROM outbox_poll('3:3:')`, true},
		{"orders_relay", "takes the lease", `UPDATE outbox_lease SET epoch = epoch + 1`, true},
		{"orders_relay", "truncates a leaf", `TRUNCATE outbox_0`, true},
		{"orders_relay", "cannot write messages", insertMessage, false},
		{"orders_relay", "cannot delete single messages", `DELETE FROM outbox`, false},
		{"orders_relay", "cannot change payloads", `UPDATE outbox SET payload = ''`, false},
		{"orders_relay", "cannot see orders", `SELECT FROM orders`, false},
		{"orders_relay", "cannot see api keys", `SELECT FROM api_keys`, false},
		{"orders_relay", "cannot see reports of payments", `SELECT FROM payment_webhooks`, false},
		{"orders_relay", "cannot see another schema's messages", `SELECT FROM email.outbox`, false},

		{"email", "queues an email", `INSERT INTO emails (id, order_id, user_id, kind, to_address, data, message_id) VALUES (gen_random_uuid(), gen_random_uuid(), 'u', 'shipped', 'a@b', '{}', 'm')`, true},
		{"email", "records a try", `UPDATE emails SET attempts = attempts + 1`, true},
		{"email", "cannot redirect an email", `UPDATE emails SET to_address = 'c@d'`, false},
		{"email", "cannot delete the proof", `DELETE FROM emails`, false},
		{"email", "writes dead letters' copies", insertMessage, true},
		{"email", "cannot see orders", `SELECT FROM orders.orders`, false},
		{"email_relay", "reads messages", `SELECT FROM outbox`, true},
		{"email_relay", "cannot see emails", `SELECT FROM emails`, false},

		{"warehouse", "creates a shipment", `INSERT INTO shipments (id, order_id, user_id, state) VALUES (gen_random_uuid(), gen_random_uuid(), 'u', 'packing')`, true},
		{"warehouse", "cannot delete a shipment", `DELETE FROM shipments`, false},
		{"warehouse", "cannot give a shipment to another order", `UPDATE shipments SET order_id = gen_random_uuid()`, false},
		{"warehouse", "writes messages", insertMessage, true},
		{"warehouse", "cannot see emails", `SELECT FROM email.emails`, false},
		{"warehouse_relay", "cannot see shipments", `SELECT FROM shipments`, false},
	}
	pools := map[string]*pgxpool.Pool{}
	for _, tt := range tests {
		if pools[tt.role] == nil {
			pools[tt.role] = db.RolePool(tt.role)
		}
	}
	for _, tt := range tests {
		t.Run(tt.role+" "+tt.name, func(t *testing.T) {
			err := try(t.Context(), pools[tt.role], tt.sql)
			if tt.allowed && err != nil {
				t.Errorf("%s as %s = %v, want it done", tt.sql, tt.role, err)
			}
			if !tt.allowed && !denied(err) {
				t.Errorf("%s as %s = %v, want permission denied", tt.sql, tt.role, err)
			}
		})
	}
}

// try runs one statement and undoes it.
func try(ctx context.Context, pool *pgxpool.Pool, sql string) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, sql)
	return errors.Join(err, tx.Rollback(ctx))
}

func denied(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "42501"
}

// A function with the owner's rights must not find a temporary table of its caller's before the real one.
func TestFunctionsWithTheOwnersRightsSearchTemporaryTablesLast(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	rows, err := db.Pool.Query(t.Context(), `
		SELECT p.oid::regprocedure::text
		FROM pg_proc p
		JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE n.nspname IN ('orders', 'email', 'warehouse')
			AND p.prosecdef
			AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search_path=%, pg_temp')`)
	if err != nil {
		t.Fatal(err)
	}
	unsafe, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(unsafe) > 0 {
		t.Errorf("functions that search temporary tables first = %v, %v; want none", unsafe, err)
	}
}

func TestTheSecondWallStandsBehindDedup(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	tests := []struct{ role, name, sql string }{
		{"email", "one email of a kind for an order", `INSERT INTO emails (id, order_id, user_id, kind, to_address, data, message_id)
			SELECT gen_random_uuid(), 'dddddddd-0000-7000-8000-000000000000', 'u', 'shipped', 'a@b', '{}', 'm' || n FROM generate_series(1, 2) AS n`},
		{"warehouse", "one shipment for an order", `INSERT INTO shipments (id, order_id, user_id, state)
			SELECT gen_random_uuid(), 'dddddddd-0000-7000-8000-000000000000', 'u', 'packing' FROM generate_series(1, 2)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := db.RolePool(tt.role).Exec(t.Context(), tt.sql)
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "23505" {
				t.Errorf("second row = %v, want a unique violation", err)
			}
		})
	}
}
