package sandboxpay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

const (
	secret    = "a-secret-of-the-tests"
	newSecret = "the-secret-that-follows-it"
)

// sign returns a signature over body.
func sign(secret string, at time.Time, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
	return hex.EncodeToString(mac.Sum(nil))
}

const succeeded = `{"id":"evt_1","type":"payment_intent.succeeded","created":1767323045,"data":{"object":
	{"id":"pi_1","status":"succeeded","amount":2000,"currency":"EUR","payment_method":"pm_ok","reference":"an-order","created_at":"2026-01-02T03:04:05Z"}}}`

func TestWebhooksTakeOnlyWhatTheProviderHasSigned(t *testing.T) {
	t.Parallel()
	now := time.Now()
	header := func(at time.Time, signatures ...string) []string {
		value := fmt.Sprintf("t=%d", at.Unix())
		for _, s := range signatures {
			value += ",v1=" + s
		}
		return []string{value}
	}
	good := sign(secret, now, succeeded)
	old, ahead := now.Add(-payment.SignatureTolerance-time.Minute), now.Add(payment.SignatureTolerance+time.Minute)
	tests := []struct {
		name   string
		header []string
		body   string
		ok     bool
	}{
		{"the provider's", header(now, good), succeeded, true},
		{"one with the secret that follows", header(now, sign(newSecret, now, succeeded)), succeeded, true},
		{"several, of which one fits", header(now, sign("another", now, succeeded), good), succeeded, true},
		{"one that took some minutes", header(now.Add(-4*time.Minute), sign(secret, now.Add(-4*time.Minute), succeeded)), succeeded, true},
		{"no header", nil, succeeded, false},
		{"two headers", append(header(now, good), header(now, good)...), succeeded, false},
		{"an empty header", []string{""}, succeeded, false},
		{"no signature", header(now), succeeded, false},
		{"an empty signature", header(now, ""), succeeded, false},
		{"the start of a signature", header(now, good[:32]), succeeded, false},
		{"no hexadecimal number", header(now, "zz"+good[2:]), succeeded, false},
		{"another secret", header(now, sign("another", now, succeeded)), succeeded, false},
		{"no secret", header(now, sign("", now, succeeded)), succeeded, false},
		{"another body", header(now, good), succeeded + " ", false},
		{"another time than was signed", header(now.Add(-time.Minute), good), succeeded, false},
		{"no time", []string{"v1=" + good}, succeeded, false},
		{"a time that is none", []string{"t=now,v1=" + good}, succeeded, false},
		{"one that was recorded long ago", header(old, sign(secret, old, succeeded)), succeeded, false},
		{"one of the future", header(ahead, sign(secret, ahead, succeeded)), succeeded, false},
	}
	for _, tt := range tests {
		_, err := NewWebhooks(secret, newSecret).Parse(http.Header{"Webhook-Signature": tt.header}, []byte(tt.body))
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, payment.ErrSignature) {
			t.Errorf("%s: Parse = %v, want it taken: %v", tt.name, err, tt.ok)
		}
	}
	if _, err := NewWebhooks().Parse(http.Header{"Webhook-Signature": header(now, sign("", now, succeeded))}, []byte(succeeded)); !errors.Is(err, payment.ErrSignature) {
		t.Errorf("Parse without a secret = %v, want ErrSignature", err)
	}
}

func TestWebhooksSayWhatBecameOfAnIntent(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	said := func(status payment.Status, refund string) payment.Report {
		var refunded int64
		if refund != "" {
			refunded = 2000
		}
		return payment.Report{ID: "evt_1", At: at, Intent: payment.Intent{
			ID: "pi_1", Status: status, Amount: 2000, Currency: "EUR", Method: "pm_ok", Reference: "an-order", Refund: refund, Refunded: refunded,
		}}
	}
	body := func(kind, status, refund string) string {
		return fmt.Sprintf(`{"id":"evt_1","type":%q,"created":%d,"data":{"object":
			{"id":"pi_1","status":%q,"amount":2000,"currency":"EUR","payment_method":"pm_ok","reference":"an-order","refund":%q}}}`, kind, at.Unix(), status, refund)
	}
	tests := []struct {
		name, body string
		want       payment.Report
		ok         bool
	}{
		{"charged", succeeded, said(payment.Succeeded, ""), true},
		{"declined", body("payment_intent.payment_failed", "declined", ""), said(payment.Declined, ""), true},
		{"cancelled", body("payment_intent.canceled", "canceled", ""), said(payment.Canceled, ""), true},
		{"refunded", body("refund.created", "succeeded", "re_1"), said(payment.Succeeded, "re_1"), true},
		{"a kind that is new to us", body("payment_intent.amount_capturable_updated", "requires_capture", ""), payment.Report{ID: "evt_1", At: at}, true},
		{"another kind of object", `{"id":"evt_1","type":"customer.created","created":1767323045,"data":{"object":7}}`, payment.Report{ID: "evt_1", At: at}, true},
		{"no JSON", `{"id":`, payment.Report{}, false},
		{"no id", `{"type":"payment_intent.succeeded","data":{"object":{"id":"pi_1"}}}`, payment.Report{}, false},
		{"no object", `{"id":"evt_1","type":"payment_intent.succeeded"}`, payment.Report{}, false},
		{"an object without an id", `{"id":"evt_1","type":"payment_intent.succeeded","data":{"object":{}}}`, payment.Report{}, false},
		{"an amount that is none", `{"id":"evt_1","type":"payment_intent.succeeded","data":{"object":{"id":"pi_1","amount":"2000"}}}`, payment.Report{}, false},
	}
	for _, tt := range tests {
		now := time.Now()
		header := http.Header{"Webhook-Signature": {fmt.Sprintf("t=%d,v1=%s", now.Unix(), sign(secret, now, tt.body))}}
		got, err := NewWebhooks(secret).Parse(header, []byte(tt.body))
		if diff := cmp.Diff(tt.want, got); diff != "" || (err == nil) != tt.ok || errors.Is(err, payment.ErrSignature) {
			t.Errorf("%s: Parse = %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}
