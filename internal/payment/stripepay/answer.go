package stripepay

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/stripe/stripe-go/v85"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

// answer is one of Stripe's that is no success. Of what Stripe says only the status and codes are kept: the rest names the
// payer, and how to pay in their place.
type answer struct {
	status  int
	kind    stripe.ErrorType
	code    stripe.ErrorCode
	decline stripe.DeclineCode
}

func (a *answer) Error() string { return a.Unwrap().Error() }

// Unwrap returns what the answer means to those who know no provider.
func (a *answer) Unwrap() error {
	said := fmt.Sprintf("%d %s", a.status, a.code)
	if a.code == "" {
		said = fmt.Sprintf("%d %s", a.status, a.kind)
	}
	if a.decline != "" {
		said += " " + string(a.decline)
	}
	return &payment.Refusal{Kind: a.means(), Said: said}
}

// means reads the answer by https://docs.stripe.com/api/errors.
func (a *answer) means() payment.Kind {
	switch {
	case a.status >= http.StatusInternalServerError, a.status == http.StatusTooManyRequests:
		return payment.Undecided // a failure of Stripe, or a limit: "the result should be treated as indeterminate"
	case a.code == stripe.ErrorCodeLockTimeout, a.code == stripe.ErrorCodeIdempotencyKeyInUse:
		return payment.Undecided // another request works on it
	case a.kind == stripe.ErrorTypeIdempotency:
		return payment.KeyReused
	case a.kind == stripe.ErrorTypeCard:
		return payment.PaymentDeclined
	case a.code == stripe.ErrorCodePaymentIntentUnexpectedState, a.status == http.StatusConflict:
		return payment.Undecided // the intent itself says which state that is
	case a.status == http.StatusNotFound:
		return payment.NotFound
	case a.status == http.StatusBadRequest, a.status == http.StatusPaymentRequired:
		return payment.Invalid
	}
	return payment.Undecided // such as a key that was revoked: that is to be mended, and says nothing of the payment
}

// answered returns what the library's err means. An answer that is no success is a [payment.Refusal]; of one that the library
// could not read, its error would repeat the text.
func answered(err error) error {
	if err == nil {
		return nil
	}
	if said, ok := errors.AsType[*stripe.Error](err); ok {
		return &answer{status: said.HTTPStatusCode, kind: said.Type, code: said.Code, decline: said.DeclineCode}
	}
	if broken, ok := errors.AsType[*url.Error](err); ok {
		return broken
	}
	return errors.New("the answer of Stripe could not be read")
}
