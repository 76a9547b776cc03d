package verify

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/test/system"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// scene is a system at rest in which one order was shipped, as the tables, the topics, the outside world and the client have
// it.
type scene struct {
	db      *pgtest.DB
	order   uuid.UUID
	records []*kgo.Record
	journal []system.Entry
	clients []Request
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{db: migrated.New(t), order: uuid.Must(uuid.NewV7())}
	id := s.order.String()
	// The pool uses simple statements here, one after the other.
	for _, statement := range []string{
		`INSERT INTO orders.products (sku, name, unit_price, currency) VALUES ('pen', 'Pen', 1000, 'EUR')`,
		`INSERT INTO orders.stock (sku, initial, available, shipped) VALUES ('pen', 10, 8, 2)`,
		`INSERT INTO orders.orders (id, user_id, user_seq, status, currency, total, email, payment_method, version, created_at, updated_at)
			VALUES ('ID', 'ann', 1, 'shipped', 'EUR', 2000, 'ann@example.com', 'pm_ok', 3, now(), now())`,
		`INSERT INTO orders.order_items (order_id, sku, line, name, quantity, unit_price) VALUES ('ID', 'pen', 1, 'Pen', 2, 1000)`,
		`INSERT INTO orders.order_history (order_id, version, kind, from_status, to_status)
			VALUES ('ID', 1, 'placed', NULL, 'pending'), ('ID', 2, 'status', 'pending', 'completed'), ('ID', 3, 'status', 'completed', 'shipped')`,
		`INSERT INTO orders.idempotency_keys (user_id, operation, key, request_hash, status, location, body)
			VALUES ('ann', 'create', 'key-1', sha256(''), 201, '/v1/orders/ID', '')`,
		`INSERT INTO orders.reservations (order_id, sku, quantity, state) VALUES ('ID', 'pen', 2, 'shipped')`,
		`INSERT INTO orders.stock_moves (order_id, sku, kind, quantity) VALUES ('ID', 'pen', 'reserve', 2), ('ID', 'pen', 'ship', 2)`,
		`INSERT INTO orders.payments (order_id, intent_id, idempotency_key, amount, currency, status) VALUES ('ID', 'pi', 'key', 2000, 'EUR', 'charged')`,
		`INSERT INTO orders.saga_instances (id, lane, definition, version, data, state, finished_at) VALUES ('ID', 'ann', 'place-order', 1, '{}', 'completed', now())`,
		`INSERT INTO warehouse.shipments (id, order_id, user_id, state, shipped_at) VALUES ('ID', 'ID', 'ann', 'shipped', now())`,
		`INSERT INTO warehouse.shipment_items (shipment_id, line, bin, sku, name, quantity) VALUES ('ID', 1, 'A1', 'pen', 'Pen', 2)`,
		`INSERT INTO email.emails (id, order_id, user_id, kind, to_address, data, state, message_id, sent_at)
			SELECT gen_random_uuid(), 'ID', 'ann', kind, 'ann@example.com', '{}', 'sent', kind, now()
			FROM unnest(ARRAY['confirmation', 'shipped']) AS kind`,
	} {
		s.exec(t, statement)
	}
	s.publish(t, "orders", "orders", event.OrderPlacedV1, "order")
	s.publish(t, "orders", "orders.completed", event.OrderCompletedV1, "email", "warehouse")
	s.publish(t, "warehouse", "shipments", event.ShipmentCreatedV1, "order", "email")
	s.journal = []system.Entry{
		{Kind: "charge", Reference: id, Amount: 2000, Currency: "EUR"},
		{Kind: "mail", Reference: id, EmailKind: "confirmation"}, {Kind: "mail", Reference: id, EmailKind: "shipped"},
	}
	s.clients = []Request{{Key: "key-1", Outcome: "accepted", OrderID: id}, {Key: "key-2", Outcome: "unknown"}}
	return s
}

func (s *scene) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := s.db.Pool.Exec(t.Context(), strings.ReplaceAll(statement, "ID'", s.order.String()+"'")); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// publish writes a message into a schema's outbox, its record, and its fate in the groups.
func (s *scene) publish(t *testing.T, schema, topic, eventType string, groups ...string) {
	t.Helper()
	id := uuid.Must(uuid.NewV7())
	payload := fmt.Sprintf(`{"order_id": "%s", "user_id": "ann", "user_seq": 1}`, s.order)
	s.exec(t, fmt.Sprintf(`
		INSERT INTO %s.outbox (id, topic, key, type, content_type, payload)
		VALUES ('%s', '%s', 'ann', '%s', 'application/json', convert_to('%s', 'UTF8'))`, schema, id, topic, eventType, payload))
	for _, group := range groups {
		in := map[string]string{"order": "orders", "email": "email", "warehouse": "warehouse"}[group]
		s.exec(t, fmt.Sprintf(`
			INSERT INTO %s.processed_messages (slot, consumer_group, event_id, payload_hash, state) VALUES (0, '%s', '%s', '', 'done')`, in, group, id))
	}
	s.records = append(s.records, &kgo.Record{Topic: topic, Key: []byte("ann"), Value: []byte(payload), Headers: []kgo.RecordHeader{
		{Key: "ce_id", Value: []byte(id.String())}, {Key: "ce_type", Value: []byte(eventType)},
	}})
}

// check runs the verifier over the scene and returns the invariants that it finds violated.
func (s *scene) check(t *testing.T) (invariants []string, violations []Violation) {
	t.Helper()
	broker := kafkatest.New(t, event.Topics()...)
	broker.Produce(t, s.records...)
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, e := range s.journal {
			if err := json.NewEncoder(w).Encode(e); err != nil {
				t.Error(err)
			}
		}
	}))
	t.Cleanup(outside.Close)
	client := system.NewClient("", "", outside.URL)
	t.Cleanup(client.Close)
	violations, err := Check(t.Context(), Target{DB: s.db.Pool, Kafka: broker.Client(t), Outside: client, Clients: s.clients})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		invariants = append(invariants, v.Invariant)
	}
	slices.Sort(invariants)
	return slices.Compact(invariants), violations
}

// A checker that convicts nobody proves nothing: each crime is found, under its invariant.
func TestTheVerifierConvicts(t *testing.T) {
	t.Parallel()
	sql := func(statement string) func(*testing.T, *scene) {
		return func(t *testing.T, s *scene) { s.exec(t, statement) }
	}
	tests := []struct {
		crime     string
		invariant string // "": nothing is wrong
		commit    func(*testing.T, *scene)
	}{
		{"none", "", func(*testing.T, *scene) {}},
		{"none, and the ring has given the messages' space back", "", sql(`
			DELETE FROM orders.outbox; UPDATE orders.orders SET created_at = now() - interval '2 h' WHERE id = 'ID'`)},
		{"a promised order is gone", "I1", func(_ *testing.T, s *scene) {
			s.clients = append(s.clients, Request{Key: "key-3", Outcome: "accepted", OrderID: uuid.NewString()})
		}},
		{"a refused order is there", "I1", func(_ *testing.T, s *scene) { s.clients[0].Outcome = "refused" }},
		{"nobody sent an order that is there", "I2", func(_ *testing.T, s *scene) { s.clients = s.clients[1:] }},
		{"an order without a key", "I3", sql(`DELETE FROM orders.idempotency_keys`)},
		{"two keys for one order", "I3", sql(`
			INSERT INTO orders.idempotency_keys (user_id, operation, key, request_hash, status, location, body)
			VALUES ('ann', 'create', 'key-2', sha256(''), 201, '/v1/orders/ID', '')`)},
		{"an order that never ended", "I4", sql(`UPDATE orders.orders SET status = 'pending'`)},
		{"a step of the history is missing", "I5", sql(`DELETE FROM orders.order_history WHERE version = 2`)},
		{"a status without its history", "I5", sql(`UPDATE orders.orders SET version = 4`)},
		{"an order nobody tells of", "I6", sql(`DELETE FROM orders.outbox WHERE topic = 'orders'`)},
		{"an order told of twice", "I6", func(t *testing.T, s *scene) {
			s.publish(t, "orders", "orders", event.OrderPlacedV1, "order")
		}},
		{"an end nobody tells of", "I6", sql(`DELETE FROM orders.outbox WHERE topic = 'orders.completed'`)},
		{"a message that was not published", "I7", func(_ *testing.T, s *scene) { s.records = s.records[:2] }},
		{"a message that was changed on its way", "I7", func(_ *testing.T, s *scene) {
			s.records[1].Value = []byte(strings.Replace(string(s.records[1].Value), "1", "2", 1))
		}},
		{"a key that is not the user", "I8", func(_ *testing.T, s *scene) { s.records[0].Key = []byte("bob") }},
		{"a user's first order comes second", "I9", func(_ *testing.T, s *scene) {
			ahead := *s.records[0]
			ahead.Value = []byte(strings.Replace(string(ahead.Value), `"user_seq": 1`, `"user_seq": 2`, 1))
			ahead.Headers = slices.Clone(ahead.Headers)
			ahead.Headers[0].Value = []byte(uuid.NewString())
			s.records = append([]*kgo.Record{&ahead}, s.records...)
		}},
		{"a message without a fate", "I10", sql(`DELETE FROM warehouse.processed_messages`)},
		{"a parked fate without its message", "I10", sql(`UPDATE email.processed_messages SET state = 'parked'`)},
		{"a shipped order that was not charged", "I13", sql(`UPDATE orders.payments SET status = 'refunded'`)},
		{"another amount than the order's", "I13", sql(`UPDATE orders.payments SET amount = 1`)},
		{"charged twice", "I14", func(_ *testing.T, s *scene) { s.journal = append(s.journal, s.journal[0]) }},
		{"never charged", "I14", func(_ *testing.T, s *scene) { s.journal = s.journal[1:] }},
		{"refunded although shipped", "I14", func(_ *testing.T, s *scene) {
			s.journal = append(s.journal, system.Entry{Kind: "refund", Reference: s.order.String(), Amount: 2000, Currency: "EUR"})
		}},
		{"a charge for no order", "I14", func(_ *testing.T, s *scene) {
			s.journal = append(s.journal, system.Entry{Kind: "charge", Reference: "nothing", Amount: 1, Currency: "EUR"})
		}},
		{"a refund that was promised and not paid", "I13", sql(`
			INSERT INTO orders.refunds (id, order_id, reason, requested_by) VALUES (gen_random_uuid(), 'ID', 'broken', 'support')`)},
		{"a refund nobody tells of", "I6", sql(`UPDATE orders.orders SET status = 'refunded'`)},
		{"a refund without its email", "I17", sql(`UPDATE orders.orders SET status = 'refunded'`)},
		{"a refunded order whose goods are neither here nor there", "I15", sql(`
			UPDATE orders.orders SET status = 'refunded'; UPDATE orders.reservations SET state = 'held'`)},
		{"a refunded order that was shipped and got its stock back", "I18", sql(`
			UPDATE orders.orders SET status = 'refunded'; UPDATE orders.reservations SET state = 'released'`)},
		{"stock that nobody reserved", "I15", sql(`UPDATE orders.stock SET available = 7, reserved = 1`)},
		{"stock that moved without a word", "I15", sql(`DELETE FROM orders.stock_moves WHERE kind = 'ship'`)},
		{"a shipped order that kept its stock", "I15", sql(`UPDATE orders.reservations SET state = 'released'`)},
		{"a reservation held for ever", "I16", sql(`UPDATE orders.reservations SET state = 'held'`)},
		{"an email that was not written", "I17", sql(`DELETE FROM email.emails WHERE kind = 'shipped'`)},
		{"an email that was not sent", "I17", sql(`UPDATE email.emails SET state = 'queued', sent_at = NULL WHERE kind = 'shipped'`)},
		{"an email nobody asked for", "I17", sql(`UPDATE email.emails SET kind = 'failure' WHERE kind = 'shipped'`)},
		{"a mail that arrived twice", "I17", func(_ *testing.T, s *scene) { s.journal = append(s.journal, s.journal[1]) }},
		{"a mail that did not arrive", "I17", func(_ *testing.T, s *scene) { s.journal = s.journal[:2] }},
		{"no shipment", "I18", sql(`DELETE FROM warehouse.shipment_items; DELETE FROM warehouse.shipments`)},
		{"two shipments", "I18", sql(`
			ALTER TABLE warehouse.shipments DROP CONSTRAINT shipments_order_id_key;
			INSERT INTO warehouse.shipments (id, order_id, user_id, state, shipped_at)
				SELECT gen_random_uuid(), order_id, user_id, state, shipped_at FROM warehouse.shipments;
			INSERT INTO warehouse.shipment_items (shipment_id, line, sku, name, quantity, picked, bin)
				SELECT n.id, i.line, i.sku, i.name, i.quantity, i.picked, i.bin
				FROM warehouse.shipment_items i
				JOIN warehouse.shipments s ON s.id = i.shipment_id
				JOIN warehouse.shipments n ON n.order_id = s.order_id AND n.id <> s.id`)},
		{"a shipment of other goods", "I18", sql(`UPDATE warehouse.shipment_items SET quantity = 3`)},
		{"a saga that is not over", "I22", sql(`UPDATE orders.saga_instances SET state = 'running', finished_at = NULL`)},
		{"a key that is held", "I22", sql(`
			INSERT INTO email.inbox_holds (consumer_group, topic, key, state, parked, type, next_at) VALUES ('email', 'shipments', 'ann', 'dead', 1, 'x', now())`)},
	}
	for _, tt := range tests {
		t.Run(tt.crime, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			tt.commit(t, s)
			got, violations := s.check(t)
			if tt.invariant == "" && len(got) > 0 {
				t.Errorf("Check of a system in which all is well = %v", violations)
			}
			if tt.invariant != "" && !slices.Contains(got, tt.invariant) {
				t.Errorf("Check = %v, want a violation of %s", violations, tt.invariant)
			}
		})
	}
}

func TestASystemIsNotAtRestBeforeItsMessagesArePublished(t *testing.T) {
	t.Parallel()
	s := newScene(t) // no relay runs
	err := Target{DB: s.db.Pool}.moving(t.Context())
	if err == nil || !strings.Contains(err.Error(), "outbox of orders: 2 messages") {
		t.Errorf("moving = %v, want the two messages in the outbox of orders", err)
	}
}
