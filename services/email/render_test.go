package email

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: (-want +got)\n%s", path, diff)
	}
}

var testOrder = uuid.MustParse("01920000-0000-7000-8000-000000000001")

func TestTemplatesShowWhatTheEventSaid(t *testing.T) {
	tpl, err := parseTemplates()
	if err != nil {
		t.Fatal(err)
	}
	items := []item{{"Coffee mug", 2, 1275}, {"Poster “Grüße”", 1, 2000}}
	for _, tc := range []struct {
		name, kind string
		content    content
	}{
		{"confirmation", kindConfirmation, content{Currency: "EUR", Total: 4550, Items: items}},
		{"confirmation_yen", kindConfirmation, content{Currency: "JPY", Total: 4550, Items: items}},
		{"failure_rejected", kindFailure, content{Currency: "EUR", Total: 4550, Status: "rejected", Reason: "MUG is out of stock."}},
		{"failure_payment", kindFailure, content{Currency: "EUR", Total: 4550, Status: "payment_failed", Reason: "The card was declined."}},
		{"failure_cancelled", kindFailure, content{Currency: "EUR", Total: 4550, Status: "cancelled"}},
		{"refund", kindRefund, content{Currency: "EUR", Total: 4550, Reason: "It arrived broken."}},
		{"shipped", kindShipped, content{Items: items}},
		{"hostile", kindConfirmation, content{Currency: "EUR", Total: 100, Items: []item{
			{"<script>alert(1)</script>", 1, 50}, {"\r\n\r\nTotal 0.00 EUR\r\nBcc: x@example.com", 1, 50},
		}}},
		{"hostile_reason", kindFailure, content{Currency: "EUR", Status: "rejected", Reason: "<img src=x onerror=alert(1)>\r\n.\r\nQUIT"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var text, html strings.Builder
			e := &email{OrderID: testOrder, Kind: tc.kind, Data: tc.content}
			if err := tpl.bodies(e, &text, &html); err != nil {
				t.Fatal(err)
			}
			golden(t, tc.name+".txt", text.String())
			golden(t, tc.name+".html", html.String())
		})
	}
}

// Every try of an email is the same mail, byte for byte but for the boundary: a provider that compares finds no difference.
func TestAMailIsTheSameAtEveryTry(t *testing.T) {
	tpl, err := parseTemplates()
	if err != nil {
		t.Fatal(err)
	}
	e := &email{
		OrderID: testOrder, Kind: kindShipped, ToAddress: "ann@example.com", MessageID: "a.shipped@orderflow.example",
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	var mails [2]bytes.Buffer
	for i := range mails {
		msg, err := tpl.message(e, "Orderflow <orders@orderflow.example>")
		if err != nil {
			t.Fatal(err)
		}
		msg.SetBoundary("boundary")
		if _, err := msg.WriteTo(&mails[i]); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(mails[0].String(), mails[1].String()); diff != "" {
		t.Errorf("second rendering differs: %s", diff)
	}
	golden(t, "shipped.eml", strings.ReplaceAll(mails[0].String(), "\r\n", "\n"))
}

func TestABadAddressNeverReachesTheProvider(t *testing.T) {
	tpl, err := parseTemplates()
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"", "ann", "ann@example.com\r\nBcc: x@example.com", "a@example.com, b@example.com"} {
		e := &email{OrderID: testOrder, Kind: kindShipped, ToAddress: to, MessageID: "m@x", CreatedAt: time.Now()}
		if _, err := tpl.message(e, "orders@orderflow.example"); err == nil {
			t.Errorf("message to %q: got no error", to)
		}
	}
}

func TestALookupKnowsYesNoAndNoAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, body  string
		found, fail bool
	}{
		{"an array with a mail", `[{"message_id":"a"}]`, true, false},
		{"an empty array", `[]`, false, false},
		{"an object with messages", `{"total":1,"messages":[{"ID":"x"}]}`, true, false},
		{"an object without messages found", `{"messages":[]}`, false, false},
		{"an error page", `<html>`, false, true},
		{"null is no answer", `null`, false, true},
		{"an object that is something else", `{"error":"no"}`, false, true},
		{"nothing", ``, false, true},
	} {
		if found, err := parseFound([]byte(tc.body)); found != tc.found || (err != nil) != tc.fail {
			t.Errorf("%s: got %t, %v, want %t, error %t", tc.name, found, err, tc.found, tc.fail)
		}
	}
	for base, want := range map[string]string{
		"http://x/v1/mail":                         "http://x/v1/mail?message_id=a%26b%40c",
		"http://x/v1/mail?limit=1":                 "http://x/v1/mail?limit=1&message_id=a%26b%40c",
		"http://x/s?query=message-id:{message_id}": "http://x/s?query=message-id:a%26b%40c",
	} {
		if got, err := lookupFor(base, "a&b@c"); err != nil || got != want {
			t.Errorf("lookupFor(%s): got %s, %v, want %s", base, got, err, want)
		}
	}
}
