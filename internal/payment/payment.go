// Package payment is what the order system asks of a payment provider: intents that are created, confirmed, cancelled and
// refunded, and reports that the provider sends by itself.
//
// A [Provider] sends each request once. Whether to send it again is its caller's decision, because only the caller knows
// what has been sent before. An error is one of three: [NeverSent] is true of it, and the provider has seen nothing; it is a
// [Refusal] of a kind, and the provider has said no; or the outcome is unknown, and has to be asked for.
//
// Each provider has a package of its own below this one; package providers chooses among them.
package payment

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// Status is where an intent stands. An intent with a status other than those below is still on its way.
type Status string

// Succeeded, Declined and Canceled are for good: nothing that is still on its way to the provider changes them.
const (
	Unconfirmed Status = "requires_confirmation"
	Succeeded   Status = "succeeded"
	Declined    Status = "declined"
	Canceled    Status = "canceled"
)

// Intent is a payment intent as the provider shows it.
type Intent struct {
	ID        string
	Status    Status
	Amount    int64  // minor units
	Currency  string // ISO 4217
	Method    string
	Reference string // what the payment is for: an order's id
	Refund    string // the refund's id, if the whole was paid back
	Refunded  int64  // minor units that were paid back, be it in part
}

// Provider is a payment provider. Its methods are bounded in time by their context only, and in size by themselves.
type Provider interface {
	// Create makes an intent, or returns the one that key has made before. It moves no money.
	Create(ctx context.Context, key string, want Intent) (Intent, error)
	// Confirm charges an intent.
	Confirm(ctx context.Context, key, id string) (Intent, error)
	// Cancel makes sure that an intent is never charged, whatever is still on its way to the provider. It reports false for
	// one that was charged already.
	Cancel(ctx context.Context, id string) (bool, error)
	// Refund pays a charged intent back and returns the refund's id. A refund that was made under another key counts too:
	// the money is back.
	Refund(ctx context.Context, key, id string) (string, error)
	// ByID returns an intent, and whether the provider shows it.
	ByID(ctx context.Context, id string) (Intent, bool, error)
	// ByKey returns the intent that was created under key, and whether the provider shows one. A look-up may be behind: false
	// means "not yet", never "there is none and will be none".
	ByKey(ctx context.Context, key string) (Intent, bool, error)
	// List returns a page of the intents that were created in [since, until), behind the one called after, and what to ask
	// for the next page with: "" on the last.
	List(ctx context.Context, since, until time.Time, after string) (intents []Intent, next string, err error)
	// Close ends the connections that are kept for the next request.
	Close()
}

// Report is what a provider says by a webhook, about an intent as it was then.
type Report struct {
	ID     string // the provider's; a report that is sent again has it again
	At     time.Time
	Intent Intent // its ID is "" in a report of something that is no concern of ours
}

// Webhooks reads the reports of one provider.
type Webhooks interface {
	// Provider names the provider: its reports have ids of their own.
	Provider() string
	// Parse checks the signature over body and returns what it says. The error is [ErrSignature] for a body that is not
	// certain to be the provider's, or was signed more than [SignatureTolerance] ago.
	Parse(header http.Header, body []byte) (Report, error)
}

// SignatureTolerance is how far a signature's time may be from ours. Within it a recorded request can be sent again, which
// does nothing: a report counts once.
const SignatureTolerance = 5 * time.Minute

// ErrSignature is returned by [Webhooks.Parse]. It does not say what is wrong with the signature: who has the secret needs no
// hint, and who has not shall get none.
var ErrSignature = errors.New("the webhook's signature is not valid")

// Kind says what a refusal means.
type Kind string

const (
	// KeyReused says that the key was used for another request. No retry can answer that.
	KeyReused Kind = "key reused"
	// IntentCanceled says that the intent was cancelled, so it is never charged.
	IntentCanceled Kind = "intent canceled"
	// PaymentDeclined says that the user's payment method does not pay.
	PaymentDeclined Kind = "declined"
	// Invalid says that the provider makes no sense of the request, and never will.
	Invalid Kind = "invalid"
	// NotFound says that the provider does not show what the request is about.
	NotFound Kind = "not found"
	// Undecided is everything else, such as a failure of the provider or a limit: what became of the request is unknown.
	Undecided Kind = "undecided"
)

// Refusal is an answer of the provider that is not a success.
type Refusal struct {
	Kind Kind
	// Said is the provider's status and code, such as "422 disputed".
	Said string
}

func (r *Refusal) Error() string { return "payment provider answered " + r.Said }

// RefusedAs returns the kind of the refusal that err is, and "" if it is none.
func RefusedAs(err error) Kind {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Kind
	}
	return ""
}

// NeverSent reports whether err is certain to mean that the provider has seen nothing of the request.
func NeverSent(err error) bool {
	if errors.Is(err, ErrCircuitOpen) {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
