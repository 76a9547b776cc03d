package sandboxpay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

// Webhooks is a [payment.Webhooks].
type Webhooks struct{ secrets []string }

// NewWebhooks returns the reader of reports that are signed with any of the secrets: two while one replaces the other.
func NewWebhooks(secrets ...string) *Webhooks { return &Webhooks{secrets} }

// Provider implements [payment.Webhooks].
func (*Webhooks) Provider() string { return "sandbox" }

// report is a report on the wire.
type report struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Created int64  `json:"created"` // Unix seconds
	Data    struct {
		Object json.RawMessage `json:"object"`
	} `json:"data"`
}

// Parse implements [payment.Webhooks].
func (h *Webhooks) Parse(header http.Header, body []byte) (payment.Report, error) {
	if !h.signed(header.Values("Webhook-Signature"), body, time.Now()) {
		return payment.Report{}, payment.ErrSignature
	}
	var r report
	if err := json.Unmarshal(body, &r); err != nil || r.ID == "" {
		return payment.Report{}, fmt.Errorf("decode the report %q: %w", r.ID, errOr(err, "it has no id"))
	}
	said := payment.Report{ID: r.ID, At: time.Unix(r.Created, 0).UTC()}
	switch r.Type {
	case "payment_intent.succeeded", "payment_intent.payment_failed", "payment_intent.canceled", "refund.created":
	default:
		return said, nil
	}
	var in intent
	if err := json.Unmarshal(r.Data.Object, &in); err != nil || in.ID == "" {
		return payment.Report{}, fmt.Errorf("decode the payment intent of report %s: %w", r.ID, errOr(err, "it has no id"))
	}
	said.Intent = in.shown()
	return said, nil
}

func errOr(err error, otherwise string) error {
	if err != nil {
		return err
	}
	return errors.New(otherwise)
}

// signed checks a header t=SECONDS,v1=HEX: the HMAC-SHA256 under a secret over "SECONDS.BODY", as at Stripe
// (https://docs.stripe.com/webhooks#verify-manually). There may be several v1.
func (h *Webhooks) signed(headers []string, body []byte, now time.Time) bool {
	if len(headers) != 1 {
		return false
	}
	var at string
	var signatures [][]byte
	for part := range strings.SplitSeq(headers[0], ",") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "t":
			at = value
		case "v1":
			if sum, err := hex.DecodeString(value); err == nil {
				signatures = append(signatures, sum)
			}
		}
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > payment.SignatureTolerance {
		return false
	}
	valid := false
	for _, secret := range h.secrets {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(at + "."))
		mac.Write(body)
		sum := mac.Sum(nil)
		for _, signature := range signatures {
			valid = hmac.Equal(sum, signature) || valid // in constant time
		}
	}
	return valid
}
