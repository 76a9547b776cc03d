package api_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/services/api"
)

const webhookSecret = "webhook-secret-of-the-tests"

func takesWebhooks(c *api.Config) { c.WebhookSecrets = []string{webhookSecret} }

// reportBody is what the provider says of an order's payment.
func reportBody(eventID, orderID string) string {
	return fmt.Sprintf(`{"id":%q,"type":"payment_intent.succeeded","created":1767323045,"data":{"object":
		{"id":"pi_1","status":"succeeded","amount":2580,"currency":"EUR","payment_method":"pm_ok","reference":%q}}}`, eventID, orderID)
}

// report is a webhook as the provider sends it at some time.
func report(body string, at time.Time) call {
	mac := hmac.New(sha256.New, []byte(webhookSecret))
	fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
	return call{
		method: "POST", path: "/v1/webhooks/payments", key: "-", body: body,
		header: http.Header{"Webhook-Signature": {fmt.Sprintf("t=%d,v1=%s", at.Unix(), hex.EncodeToString(mac.Sum(nil)))}},
	}
}

func TestAReportOfAPaymentBecomesOneMessage(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, takesWebhooks)
	order := s.place(t, "ada")
	const times = 20
	var group sync.WaitGroup
	for range times { // a provider sends again what it has not heard an answer to, from wherever it likes
		group.Go(func() {
			if r := s.do(t, report(reportBody("evt_1", order), time.Now())); r.status != http.StatusOK || r.err != nil {
				t.Errorf("POST /v1/webhooks/payments = %d %s %v, want 200", r.status, r.body, r.err)
			}
		})
	}
	group.Wait()
	var topic, key string
	var payload []byte
	err := db.Pool.QueryRow(t.Context(), `SELECT topic, key, payload FROM orders.outbox WHERE type = $1`, event.PaymentReportedV1).Scan(&topic, &key, &payload)
	if err != nil {
		t.Fatal(err)
	}
	var got event.PaymentReported
	if err := json.Unmarshal(payload, &got); err != nil {
		t.Fatal(err)
	}
	want := event.PaymentReported{
		OrderID: uuid.MustParse(order), UserID: "ada", Provider: "sandbox", IntentID: "pi_1", Status: "succeeded", Amount: 2580, Currency: "EUR",
		ReportedAt: time.Unix(1767323045, 0).UTC(),
	}
	if diff := cmp.Diff(want, got); diff != "" || topic != event.Payments || key != "ada" {
		t.Errorf("message of %q in %q (-want +got):\n%s", key, topic, diff)
	}
	reported := func() int {
		return count(t, db, `SELECT count(*) FROM orders.outbox WHERE type = $1`, event.PaymentReportedV1)
	}
	if n := reported(); n != 1 {
		t.Errorf("%d messages of one report, want 1", n)
	}
	if r := s.do(t, report(reportBody("evt_2", order), time.Now())); r.status != http.StatusOK || reported() != 2 {
		t.Errorf("another report = %d with %d messages, want 200 and 2", r.status, reported())
	}
	metrics := s.do(t, call{method: "GET", path: "/metrics", key: "-"}).body
	for outcome, n := range map[string]int{"taken": 2, "repeated": times - 1} {
		if !strings.Contains(metrics, fmt.Sprintf("outcome=%q} %d\n", outcome, n)) {
			t.Errorf("the metrics do not count %d reports as %s", n, outcome)
		}
	}
}

func TestAReportOfARefundNamesIt(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, takesWebhooks)
	order := s.place(t, "ada")
	body := strings.NewReplacer("payment_intent.succeeded", "refund.created", `"reference"`, `"refund":"re_1","reference"`).Replace(reportBody("evt_1", order))
	if r := s.do(t, report(body, time.Now())); r.status != http.StatusOK || r.err != nil {
		t.Fatalf("POST /v1/webhooks/payments = %d %s %v, want 200", r.status, r.body, r.err)
	}
	n := count(t, db, `
		SELECT count(*) FROM orders.outbox
		WHERE type = $1 AND convert_from(payload, 'UTF8')::jsonb @> '{"intent_id": "pi_1", "status": "succeeded", "refund_id": "re_1"}'`, event.PaymentReportedV1)
	if n != 1 {
		t.Errorf("%d messages name the refund, want 1", n)
	}
}

// What can never become a message is answered with 200, or the provider would send it for ever.
func TestAReportThatNoOrderWaitsForIsTakenAndForgotten(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, takesWebhooks)
	for name, body := range map[string]string{
		"unknown_order": reportBody("evt_1", uuid.NewString()),
		"ignored":       `{"id":"evt_2","type":"customer.created","created":1767323045,"data":{"object":{"id":"cus_1"}}}`,
	} {
		for range 2 {
			if r := s.do(t, report(body, time.Now())); r.status != http.StatusOK {
				t.Errorf("%s = %d %s, want 200", name, r.status, r.body)
			}
		}
		if metrics := s.do(t, call{method: "GET", path: "/metrics", key: "-"}).body; !strings.Contains(metrics, fmt.Sprintf("outcome=%q} 2\n", name)) {
			t.Errorf("the metrics do not count 2 reports as %s", name)
		}
	}
	if r := s.do(t, report(reportBody("evt_3", "another shop's"), time.Now())); r.status != http.StatusOK {
		t.Errorf("a reference that is no order's = %d %s, want 200", r.status, r.body)
	}
	if n := count(t, db, `SELECT (SELECT count(*) FROM orders.outbox) + (SELECT count(*) FROM orders.payment_webhooks)`); n != 0 {
		t.Errorf("%d rows are left of reports that nobody waits for, want none", n)
	}
}

func TestABadWebhookIsRefusedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, takesWebhooks)
	order := s.place(t, "ada")
	body := reportBody("evt_"+canary, order)
	changed := func(change func(c *call)) call {
		c := report(body, time.Now())
		change(&c)
		return c
	}
	var refused []string
	for _, tt := range []struct {
		name string
		call call
		want int
	}{
		{"no signature", changed(func(c *call) { c.header = nil }), 400},
		{"another body", changed(func(c *call) { c.body += " " }), 400},
		{"an old one", report(body, time.Now().Add(-6*time.Minute)), 400},
		{"an API key for a signature", changed(func(c *call) { c.header, c.key = nil, serviceKey }), 400},
		{"signed, but no JSON", report(`{"id":"`+canary, time.Now()), 400},
		{"empty", changed(func(c *call) { c.body, c.contentType = "", "application/json" }), 400},
		{"not JSON by its header", changed(func(c *call) { c.contentType = "text/plain" }), 415},
		{"over 64 KiB", report(`{"id":"`+strings.Repeat("a", 64<<10)+`"}`, time.Now()), 413},
		{"over 64 KiB, in chunks", chunked(report(`{"id":"`+strings.Repeat("a", 64<<10)+`"}`, time.Now())), 413},
		{"another method", call{method: "GET", path: "/v1/webhooks/payments", key: "-"}, 405},
	} {
		r := s.do(t, tt.call)
		if r.status != tt.want || !strings.HasPrefix(r.header.Get("Content-Type"), "application/problem+json") || strings.Contains(r.body, canary) {
			t.Errorf("%s = %d %s %s, want %d", tt.name, r.status, r.header.Get("Content-Type"), r.body, tt.want)
		}
		if strings.Contains(r.body, "ignature") {
			refused = append(refused, r.body)
		}
	}
	for _, said := range refused {
		if len(refused) != 4 || said != refused[0] {
			t.Fatalf("%d bodies about a bad signature, %q; want 4 that say the same", len(refused), refused)
		}
	}
	slow := start(t, db, func(c *api.Config) { takesWebhooks(c); c.BodyTimeout = 50 * time.Millisecond })
	if r := slow.do(t, endless(report(body, time.Now()))); r.status != http.StatusRequestTimeout {
		t.Errorf("a body that does not end = %d %v, want 408", r.status, r.err)
	}
	if n := count(t, db, `SELECT count(*) FROM orders.payment_webhooks`); n != 0 {
		t.Errorf("%d reports were noted, want none", n)
	}
	if r := start(t, db, nil).do(t, report(body, time.Now())); r.status != http.StatusNotFound {
		t.Errorf("without a secret = %d, want 404", r.status)
	}
}

// The provider sends again what was answered with 503. A commit that was not answered is found by the api itself.
func TestAReportIsAskedForAgainWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := newProxy(t, db)
	s := start(t, db, func(c *api.Config) { takesWebhooks(c); c.DatabaseURL = p.url(t, db) })
	order := s.place(t, "ada")
	send := func(eventID string) int { return s.do(t, report(reportBody(eventID, order), time.Now())).status }
	noted := func() int {
		return count(t, db, `SELECT count(*) FROM orders.outbox WHERE type = $1`, event.PaymentReportedV1)
	}
	p.refuse()
	if status := send("evt_1"); status != http.StatusServiceUnavailable {
		t.Errorf("a report while Postgres is away = %d, want 503", status)
	}
	p.admit()
	eventually(t, "the report is taken", func() bool { return send("evt_1") == http.StatusOK })
	p.next(losesAnswer)
	if status := send("evt_2"); status != http.StatusOK {
		t.Errorf("a report whose commit was not answered = %d, want 200", status)
	}
	if n := noted(); n != 2 {
		t.Errorf("%d messages of two reports, want 2", n)
	}
}
