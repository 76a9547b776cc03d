package stripepay

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

const (
	secret    = "whsec_of_the_tests"
	newSecret = "whsec_that_follows_it"
)

// signedBy is an event as Stripe sends it, signed at some time.
func signedBy(secret string, at time.Time, body string) http.Header {
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: secret, Timestamp: at})
	return http.Header{"Stripe-Signature": {signed.Header}}
}

func eventOf(t testing.TB, kind, object string) string {
	t.Helper()
	return fmt.Sprintf(`{"id":"evt_1NG8Du2eZvKYlo2CUI79vXWy","object":"event","api_version":"2019-02-19","created":1767323045,"type":%q,"data":{"object":%s}}`,
		kind, recorded(t, object))
}

func TestWebhooksTakeOnlyWhatStripeHasSigned(t *testing.T) {
	t.Parallel()
	body := eventOf(t, "payment_intent.succeeded", "intent_succeeded")
	now := time.Now()
	two := signedBy(secret, now, body)
	two["Stripe-Signature"] = append(two["Stripe-Signature"], two["Stripe-Signature"]...)
	for _, tt := range []struct {
		name   string
		header http.Header
		body   string
		ok     bool
	}{
		{"Stripe's", signedBy(secret, now, body), body, true},
		{"one with the secret that follows", signedBy(newSecret, now, body), body, true},
		{"one that took some minutes", signedBy(secret, now.Add(-4*time.Minute), body), body, true},
		{"none", http.Header{}, body, false},
		{"two", two, body, false},
		{"another secret", signedBy("whsec_another", now, body), body, false},
		{"another body", signedBy(secret, now, body), body + " ", false},
		{"one that was recorded long ago", signedBy(secret, now.Add(-payment.SignatureTolerance-time.Minute), body), body, false},
	} {
		_, err := NewWebhooks(secret, newSecret).Parse(tt.header, []byte(tt.body))
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, payment.ErrSignature) {
			t.Errorf("%s: Parse = %v, want it taken: %v", tt.name, err, tt.ok)
		}
	}
}

func TestWebhooksSayWhatBecameOfAnIntent(t *testing.T) {
	t.Parallel()
	declined := shownAs(payment.Declined, "")
	declined.Method = ""
	for _, tt := range []struct {
		name, body string
		want       payment.Intent
		ok         bool
	}{
		{"charged", eventOf(t, "payment_intent.succeeded", "intent_succeeded"), shownAs(payment.Succeeded, ""), true},
		{"declined", eventOf(t, "payment_intent.payment_failed", "intent_declined"), declined, true},
		{"cancelled", eventOf(t, "payment_intent.canceled", "intent_canceled"), shownAs(payment.Canceled, ""), true},
		{"created", eventOf(t, "payment_intent.created", "intent_requires_confirmation"), payment.Intent{}, true},
		{"refunded", eventOf(t, "refund.created", "refund"), payment.Intent{}, true},
		{"no JSON", `{"id":`, payment.Intent{}, false},
		{"no object", `{"id":"evt_1","type":"payment_intent.succeeded"}`, payment.Intent{}, false},
		{"an object without an id", `{"id":"evt_1","type":"payment_intent.succeeded","data":{"object":{}}}`, payment.Intent{}, false},
	} {
		got, err := NewWebhooks(secret).Parse(signedBy(secret, time.Now(), tt.body), []byte(tt.body))
		if diff := cmp.Diff(tt.want, got.Intent); diff != "" || (err == nil) != tt.ok || tt.ok && got.ID != "evt_1NG8Du2eZvKYlo2CUI79vXWy" {
			t.Errorf("%s: Parse = %+v, %v (-want +got):\n%s", tt.name, got, err, diff)
		}
	}
}
