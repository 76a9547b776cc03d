package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// ruin is a database and a broker whose services have lost something.
type ruin struct {
	*testing.T
	db      *pgtest.DB
	broker  *kafkatest.Broker
	client  *kgo.Client
	sandbox string // its URL, once email is started
}

func newRuin(t *testing.T) *ruin {
	t.Helper()
	broker := kafkatest.New(t, event.Topics()...)
	return &ruin{T: t, db: migrated.New(t), broker: broker, client: broker.Client(t)}
}

// start runs a service of the system, ready when it returns.
func (r *ruin) start(service string, args ...string) *serving {
	r.Helper()
	ops := unused(r.T)
	s := serveInBackground(r.T, append([]string{
		service, "--database-url", r.db.RoleURL(service), "--kafka", strings.Join(r.broker.Addrs, ","), "--ops-addr", ops, "--dev",
	}, args...)...)
	wantReady(r.T, s, "http://"+ops+"/readyz")
	return s
}

func (r *ruin) startEmail() {
	r.Helper()
	web, smtp := unused(r.T), unused(r.T)
	r.sandbox = "http://" + web
	s := serveInBackground(r.T, "sandbox", "--addr", web, "--smtp-addr", smtp, "--sandbox-dir", r.TempDir())
	wantReady(r.T, s, r.sandbox+"/readyz")
	r.start("email", "--smtp-addr", smtp, "--lookup-url", r.sandbox+"/v1/mail")
}

// completed publishes that an order of a new user has completed.
func (r *ruin) completed(address string) event.OrderCompleted {
	r.Helper()
	return r.completedFor("user-"+uuid.NewString(), address)
}

func (r *ruin) completedFor(user, address string) event.OrderCompleted {
	r.Helper()
	e := event.OrderCompleted{
		OrderID: uuid.Must(uuid.NewV7()), UserID: user, UserSeq: 1, Currency: "EUR", Total: 250, Email: address,
		Items: []event.Item{{SKU: "sku-pen", Name: "Pen", Quantity: 1, UnitPrice: 250}}, CompletedAt: time.Now(),
	}
	payload, err := json.Marshal(e)
	if err != nil {
		r.Fatal(err)
	}
	r.publish(user, payload)
	return e
}

func (r *ruin) publish(key string, payload []byte) {
	r.Helper()
	r.publishAs(event.OrderCompletedV1, key, payload)
}

func (r *ruin) publishAs(eventType, key string, payload []byte) {
	r.Helper()
	record := &kgo.Record{
		Topic: event.OrdersCompleted, Key: []byte(key), Value: payload,
		Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_source", Value: []byte("test")}, {Key: "content-type", Value: []byte("application/json")},
			{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "ce_type", Value: []byte(eventType)},
		},
	}
	if err := r.client.ProduceSync(r.Context(), record).FirstErr(); err != nil {
		r.Fatal(err)
	}
}

func (r *ruin) count(query string, args ...any) (n int) {
	r.Helper()
	if err := r.db.Pool.QueryRow(r.Context(), query, args...).Scan(&n); err != nil {
		r.Fatalf("%s: %v", query, err)
	}
	return n
}

func (r *ruin) await(want int, query string, args ...any) {
	r.Helper()
	waitUntil(r.T, fmt.Sprintf("%s is %d", query, want), func() bool { return r.count(query, args...) == want })
}

// lose deletes rows, as many as it must.
func (r *ruin) lose(want int64, query string, args ...any) {
	r.Helper()
	tag, err := r.db.Pool.Exec(r.Context(), query, args...)
	if err != nil || tag.RowsAffected() != want {
		r.Fatalf("%s: %d rows, %v; want %d", query, tag.RowsAffected(), err, want)
	}
}

// mails returns how often the catcher has accepted a mail about an order.
func (r *ruin) mails(order uuid.UUID) int {
	r.Helper()
	resp, err := http.Get(r.sandbox + "/v1/mail?order_id=" + order.String())
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	var mails []json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&mails); err != nil {
		r.Fatal(err)
	}
	return len(mails)
}

func (r *ruin) fault(body string) {
	r.Helper()
	resp, err := http.Post(r.sandbox+"/v1/faults", "application/json", strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		r.Fatalf("fault %s: %s", body, resp.Status)
	}
}

func (r *ruin) args(args ...string) []string {
	return append([]string{"groups", "rebuild", "--kafka", strings.Join(r.broker.Addrs, ","), "--database-url", r.db.URL}, args...)
}

// planned returns how many records a rebuild would read.
func (r *ruin) planned(group, as string) (records int64) {
	r.Helper()
	got := orderflow(r.Context(), r.args(group, "--as", as, "-o", "json")...)
	var docs []readDoc
	if err := json.Unmarshal([]byte(got.stdout), &docs); err != nil || got.code != 0 {
		r.Fatalf("plan of %s = exit %d, %s%s, %v", as, got.code, got.stdout, got.stderr, err)
	}
	for _, d := range docs {
		records += d.Records
	}
	return records
}

// rebuild runs a rebuild, checks what it did, and returns what else it said.
func (r *ruin) rebuild(group, as string, code int, want rebuildDoc, more ...string) (stderr string) {
	r.Helper()
	got := orderflow(r.Context(), r.args(append([]string{group, "--as", as, "--yes", "-o", "json"}, more...)...)...)
	var doc rebuildDoc
	if err := json.Unmarshal([]byte(got.stdout), &doc); err != nil || got.code != code {
		r.Fatalf("groups rebuild %s --as %s = exit %d, want %d (%v)\n%s%s", group, as, got.code, code, err, got.stdout, got.stderr)
	}
	want.Group, want.As = group, as
	if doc != want {
		r.Errorf("groups rebuild %s --as %s did %+v, want %+v", group, as, doc, want)
	}
	return got.stderr
}

func (r *ruin) exec(query string) {
	r.Helper()
	if _, err := r.db.Pool.Exec(r.Context(), query); err != nil {
		r.Fatalf("%s: %v", query, err)
	}
}

// What came back is mailed once, whether its row was lost after the mail had been sent or before.
func TestARebuildMailsWhatWasNeverMailedAndNothingTwice(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.startEmail()
	var sent []event.OrderCompleted
	for range 10 {
		sent = append(sent, r.completed("ann@example.com"))
	}
	r.await(10, `SELECT count(*) FROM email.emails WHERE state = 'sent'`)
	r.lose(1, `DELETE FROM email.emails WHERE order_id = $1`, sent[3].OrderID)

	r.fault(`{"smtp":"451"}`)
	never := r.completed("ann@example.com")
	// Between two tries: nobody is sending it.
	r.await(1, `SELECT count(*) FROM email.emails WHERE order_id = $1 AND state = 'queued' AND attempts > 0`, never.OrderID)
	r.lose(1, `DELETE FROM email.emails WHERE order_id = $1 AND state = 'queued'`, never.OrderID)
	r.fault(`{}`)
	if n := r.mails(never.OrderID); n != 0 {
		t.Fatalf("the order whose mail was never sent has %d: the test proves nothing", n)
	}

	r.completed("nobody") // dead: no address
	r.publish("garbage", []byte("{"))
	r.await(2, `SELECT count(*) FROM email.parked_messages WHERE state = 'dead'`)
	if got := orderflow(t.Context(), "dlq", "discard", "--class", "undecodable", "--reason", "not ours", "--yes", "--database-url", r.db.URL); got.code != 0 {
		t.Fatalf("dlq discard = exit %d, %s", got.code, got.stderr)
	}

	got := orderflow(t.Context(), r.args("email", "--as", "email-again")...)
	if got.code != 0 || !strings.Contains(got.stderr, "13 records would be handled again as group email-again; --yes does it") {
		t.Errorf("plan = exit %d, %s%s", got.code, got.stdout, got.stderr)
	}
	if n := r.count(`SELECT count(*) FROM email.emails`); n != 9 {
		t.Errorf("%d emails after a plan, want the 9 that were there", n)
	}
	// One is dead in the group, and so not done.
	r.rebuild("email", "email-again", exitPartial, rebuildDoc{CameBack: 2, Was: 9, Left: 2, Open: 1})
	r.await(11, `SELECT count(*) FROM email.emails WHERE state = 'sent'`)
	r.rebuild("email", "email-again", exitPartial, rebuildDoc{Open: 1})
	r.rebuild("email", "email-thrice", exitPartial, rebuildDoc{Was: 11, Left: 2, Open: 1})
	if n := r.count(`SELECT count(*) FROM email.emails WHERE state = 'sent'`); n != 11 {
		t.Errorf("%d emails sent after all of it, want 11", n)
	}
	for _, e := range append(sent, never) {
		if n := r.mails(e.OrderID); n != 1 {
			t.Errorf("order %s was mailed %d times, want once", e.OrderID, n)
		}
	}
}

// A rebuild beside a group at work, interrupted in the middle: what was lost is there once.
func TestAnInterruptedRebuildGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.start("warehouse")
	const orders = 3000
	for range orders / 100 {
		var records []*kgo.Record
		for range 100 {
			e := event.OrderCompleted{OrderID: uuid.Must(uuid.NewV7()), UserID: "user-" + uuid.NewString(), Email: "ann@example.com", Items: []event.Item{{SKU: "sku-pen", Name: "Pen", Quantity: 1}}}
			payload, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, &kgo.Record{Topic: event.OrdersCompleted, Key: []byte(e.UserID), Value: payload, Headers: []kgo.RecordHeader{
				{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "ce_type", Value: []byte(event.OrderCompletedV1)},
			}})
		}
		if err := r.client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	r.await(orders, `SELECT count(*) FROM warehouse.shipments`)
	r.lose(orders, `DELETE FROM warehouse.shipment_items`)
	r.lose(orders, `DELETE FROM warehouse.shipments`)

	first := serveInBackground(t, r.args("warehouse", "--as", "warehouse-again", "--yes")...)
	waitUntil(t, "some shipments are back", func() bool { return r.count(`SELECT count(*) FROM warehouse.shipments`) > 0 })
	if code := first.interrupt(); code != exitInterrupted || !strings.Contains(first.out.String(), "goes on where this one stopped") {
		t.Fatalf("exit %d after an interrupt, want %d:\n%s", code, exitInterrupted, first.out.String())
	}
	back := r.count(`SELECT count(*) FROM warehouse.shipments`)
	if back == orders {
		t.Fatal("the interrupt came behind the last shipment: the test proves nothing")
	}
	if n := r.planned("warehouse", "warehouse-again"); n <= 0 || n >= orders {
		t.Errorf("the next run would read %d records, want fewer than the %d that there are", n, orders)
	}
	r.rebuild("warehouse", "warehouse-again", 0, rebuildDoc{CameBack: orders - back})
	// The service's own group has its word about new ones only.
	r.completed("ann@example.com")
	r.await(orders+1, `SELECT count(*) FROM warehouse.shipments`)
	r.rebuild("warehouse", "warehouse-thrice", 0, rebuildDoc{Was: orders + 1})
	if n := r.count(`SELECT count(*) FROM warehouse.outbox WHERE type = 'shipment.created.v1'`); n != 2*orders+1 {
		t.Errorf("%d shipments were published, want %d: each again when it came back", n, 2*orders+1)
	}
}

// What fails is parked under the name, and nobody's business but its.
func TestWhatARebuildCannotDoIsParkedUnderItsName(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	bad := r.completed("nobody") // nobody of group email has met it
	good := r.completed("ann@example.com")
	r.rebuild("email", "email-again", exitPartial, rebuildDoc{CameBack: 1, Dead: 1})
	if n := r.count(`SELECT count(*) FROM email.emails WHERE order_id = $1`, good.OrderID); n != 1 {
		t.Errorf("%d emails about the good order, want 1", n)
	}
	got := orderflow(t.Context(), "dlq", "list", "--group", "email-again", "--database-url", r.db.URL)
	if got.code != 0 || !strings.Contains(got.stdout, "email-again/") || !strings.Contains(got.stdout, "business_invalid") {
		t.Errorf("dlq list --group email-again = exit %d, %s%s; want the dead message of %s", got.code, got.stdout, got.stderr, bad.UserID)
	}
	if n := r.count(`SELECT count(*) FROM email.outbox WHERE topic = 'email.dlq'`); n != 1 {
		t.Errorf("%d copies for email.dlq, want 1", n)
	}
	if n := r.count(`SELECT count(*) FROM email.processed_messages WHERE consumer_group = 'email'`); n != 0 {
		t.Errorf("group email knows %d messages, want none: it has read nothing", n)
	}
}

func TestARebuildRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	live := r.broker.Client(t, kgo.ConsumerGroup("email-live"), kgo.ConsumeTopics(event.OrdersCompleted))
	go live.PollFetches(t.Context())
	waitUntil(t, "a member", func() bool {
		return orderflow(t.Context(), r.args("email", "--as", "email-live")...).code == exitConflict
	})
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"a group of somebody else", []string{"theirs", "--as", "theirs-2"}, exitUsage, "use order, email, warehouse"},
		{"no name", []string{"email"}, exitUsage, "--as email-rebuild"},
		{"the group itself", []string{"email", "--as", "email"}, exitUsage, "--as email-rebuild"},
		{"another group of the system", []string{"email", "--as", "order"}, exitUsage, "--as email-rebuild"},
		{"a name of which nobody knows whose it is", []string{"email", "--as", "again"}, exitUsage, "--as email-rebuild"},
		{"a name that is at work", []string{"email", "--as", "email-live", "--yes"}, exitConflict, "group email-live is at work"},
		{"a sender that is none", []string{"email", "--as", "email-again", "--from", "nobody"}, exitUsage, "--from"},
		{"no patience", []string{"email", "--as", "email-again", "--timeout", "0s"}, exitUsage, "--timeout"},
		{"nothing to read", []string{"email", "--as", "email-again"}, exitOK, "nothing to read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := orderflow(t.Context(), r.args(tc.args...)...)
			if got.code != tc.code || !strings.Contains(got.stdout+got.stderr, tc.says) {
				t.Errorf("groups rebuild %s = exit %d, %s%s; want exit %d and %q", strings.Join(tc.args, " "), got.code, got.stdout, got.stderr, tc.code, tc.says)
			}
		})
	}
}
