package stripepay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/stripe/stripe-go/v85"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

// Webhooks is a [payment.Webhooks].
type Webhooks struct{ secrets []string }

// NewWebhooks returns the reader of reports that are signed with any of the endpoint's signing secrets (whsec_…).
func NewWebhooks(secrets ...string) *Webhooks { return &Webhooks{secrets} }

// Provider implements [payment.Webhooks].
func (*Webhooks) Provider() string { return "stripe" }

// Parse implements [payment.Webhooks].
func (h *Webhooks) Parse(header http.Header, body []byte) (payment.Report, error) {
	signatures := header.Values("Stripe-Signature")
	if len(signatures) != 1 || !h.signed(signatures[0], body) {
		return payment.Report{}, payment.ErrSignature
	}
	var said stripe.Event
	if err := json.Unmarshal(body, &said); err != nil || said.ID == "" {
		return payment.Report{}, errors.New("decode an event of Stripe")
	}
	report := payment.Report{ID: said.ID, At: time.Unix(said.Created, 0).UTC()}
	switch said.Type {
	case stripe.EventTypePaymentIntentSucceeded, stripe.EventTypePaymentIntentPaymentFailed, stripe.EventTypePaymentIntentCanceled:
	default:
		return report, nil
	}
	var in stripe.PaymentIntent
	if said.Data == nil || json.Unmarshal(said.Data.Raw, &in) != nil || in.ID == "" {
		return payment.Report{}, fmt.Errorf("decode the payment intent of event %s", said.ID)
	}
	report.Intent = shown(&in)
	return report, nil
}

func (h *Webhooks) signed(signature string, body []byte) bool {
	for _, secret := range h.secrets {
		if webhook.ValidatePayloadWithTolerance(body, signature, secret, payment.SignatureTolerance) == nil {
			return true
		}
	}
	return false
}
