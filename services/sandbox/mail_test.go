package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/smtp"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("%s: not within a minute", what)
		case <-tick.C:
		}
	}
}

// testMail is a mail about an order, with a text and an HTML part.
func testMail(order string) []byte {
	return []byte(strings.ReplaceAll(fmt.Sprintf(`Message-ID: <%[1]s@example.com>
From: shop@example.com
To: a@example.com
Subject: =?UTF-8?q?Gr=C3=BC=C3=9Fe?=
X-Order-ID: %[1]s
X-Email-Kind: confirmation
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Total 12.50=20EUR
--b
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: base64

PGI+VG90YWw8L2I+
--b--
`, order), "\n", "\r\n"))
}

func (b *box) sendMail(to, order string) error {
	return smtp.SendMail(b.smtp, nil, "shop@example.com", []string{to}, testMail(order))
}

func (b *box) mails(t *testing.T, query string) []entry {
	t.Helper()
	var mails []entry
	r := b.get(t, "/v1/mail"+query)
	if err := json.Unmarshal([]byte(r.body), &mails); err != nil {
		t.Fatalf("mail%s: %v\n%s", query, err, r.body)
	}
	return mails
}

func TestAcceptedMailIsListedAndShown(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	for _, m := range []struct{ to, order string }{{"a@example.com", "o1"}, {"b@example.com", "o2"}, {"a@example.com", "o3"}} {
		if err := b.sendMail(m.to, m.order); err != nil {
			t.Fatalf("send: %v", err)
		}
	}
	for _, tc := range []struct {
		name, query, orders string
	}{
		{"all mails, in order", "", "o1 o2 o3"},
		{"the mails of one recipient, whatever the case", "?to=A@example.com", "o1 o3"},
		{"the mail with a Message-ID", "?message_id=o2@example.com", "o2"},
		{"the mail with a Message-ID in brackets", "?message_id=%3Co2@example.com%3E", "o2"},
		{"the mails about one order", "?order_id=o3", "o3"},
		{"no mail", "?message_id=o4@example.com", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var orders []string
			for _, m := range b.mails(t, tc.query) {
				orders = append(orders, m.OrderID)
			}
			if got := strings.Join(orders, " "); got != tc.orders {
				t.Errorf("GET /v1/mail%s: got %q, want %q", tc.query, got, tc.orders)
			}
		})
	}
	first := b.mails(t, "")[0]
	if first.Subject != "Grüße" || first.EmailKind != "confirmation" || first.From != "shop@example.com" || first.Reference != "o1" {
		t.Errorf("mail: got %+v, want its headers decoded", first)
	}
	full := b.get(t, fmt.Sprintf("/v1/mail/%d", first.Seq))
	if got := full.field(t, "text") + full.field(t, "html"); got != "Total 12.50 EUR<b>Total</b>" {
		t.Errorf("mail's bodies: got %q, want the decoded text and HTML", got)
	}
	if r := b.get(t, "/v1/mail/99"); r.status != 404 {
		t.Errorf("unknown mail: got %d, want 404", r.status)
	}
}

// The catcher does not tidy up after its clients: what is handed over twice is accepted twice, for a checker to see.
func TestAMailThatIsSentTwiceIsAcceptedTwice(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	for range 2 {
		if err := b.sendMail("a@example.com", "o1"); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.kinds(t, "o1"); got != "mail mail" {
		t.Errorf("journal: got %q, want both", got)
	}
}

// F26
func TestMailFaultsDoWhatTheyAreNamedFor(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{Slow: 50 * time.Millisecond})
	for _, tc := range []struct {
		name, fault string
		code        int // of the answer to DATA; 0 is none
		accepted    int
	}{
		{"a temporary refusal accepts nothing", "451", 451, 0},
		{"a permanent refusal accepts nothing", "550", 550, 0},
		{"a dropped answer hides an accepted mail", "drop", 0, 1},
		{"a slow answer is an answer", "slow", 250, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.post(t, "/v1/faults", "", `{"smtp":"`+tc.fault+`","smtp_count":1}`)
			order, code := "order-"+tc.fault, 250
			if err := b.sendMail("a@example.com", order); err != nil {
				code = 0
				var refused *textproto.Error
				if errors.As(err, &refused) {
					code = refused.Code
				}
			}
			if code != tc.code {
				t.Errorf("DATA: got %d, want %d", code, tc.code)
			}
			if got := len(b.mails(t, "?order_id="+order)); got != tc.accepted {
				t.Errorf("accepted: got %d, want %d", got, tc.accepted)
			}
			if err := b.sendMail("a@example.com", "after-"+tc.fault); err != nil {
				t.Errorf("the mail after the fault: got %v, want it accepted", err)
			}
		})
	}
}

func TestAMailWithoutItsFinalDotIsNotAccepted(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	conn, err := textproto.Dial("tcp", b.smtp)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		say  string
		want int
	}{{"", 220}, {"HELO x", 250}, {"MAIL FROM:<shop@example.com>", 250}, {"RCPT TO:<a@example.com>", 250}, {"DATA", 354}} {
		if step.say != "" {
			if err := conn.PrintfLine("%s", step.say); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := conn.ReadResponse(step.want); err != nil {
			t.Fatalf("%s: %v", step.say, err)
		}
	}
	if _, err := conn.W.Write(testMail("cut")); err != nil {
		t.Fatal(err)
	}
	if err := conn.W.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.sendMail("a@example.com", "whole"); err != nil {
		t.Fatal(err)
	}
	if got := b.mails(t, ""); len(got) != 1 || got[0].OrderID != "whole" {
		t.Errorf("accepted: got %v, want the whole mail only", got)
	}
}

func TestThePublicJournalShowsWhatHappenedInOrderAndNoBodies(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	id := b.create(t, "k", "pm_ok", "o1")
	b.post(t, "/v1/payment_intents/"+id+"/confirm", "k", "")
	if err := b.sendMail("a@example.com", "o1"); err != nil {
		t.Fatal(err)
	}
	b.post(t, "/v1/refunds", "k", `{"payment_intent":"`+id+`"}`)
	if got := b.kinds(t, "o1"); got != "charge mail refund" {
		t.Errorf("journal: got %q, want %q", got, "charge mail refund")
	}
	entries := b.entries(t)
	for i, e := range entries {
		if i > 0 && e.Seq <= entries[i-1].Seq {
			t.Errorf("journal: seq %d behind %d, want them ascending", e.Seq, entries[i-1].Seq)
		}
	}
	if raw := b.get(t, "/v1/journal").body; strings.Contains(raw, "private") {
		t.Errorf("journal: shows what is private:\n%s", raw)
	}
	after := b.get(t, fmt.Sprintf("/v1/journal?after=%d", entries[1].Seq)).body
	if strings.Count(after, "\n") != 1 || !strings.Contains(after, `"refund"`) {
		t.Errorf("journal behind the mail: got %q, want the refund only", after)
	}
}
