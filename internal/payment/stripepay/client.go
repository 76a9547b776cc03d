// Package stripepay is Stripe as a payment provider, through its official library.
//
// An order's payment is a PaymentIntent that is created with the order's payment method and confirmed by a request of its own.
// The order's id and the idempotency key are in its metadata. Stripe finds no intent by its idempotency key, so
// [Client.ByKey] searches the metadata, which may be behind by a minute or more, as Stripe says: what it does not find may
// still turn up. That is safe, because an intent whose id nobody has stored was never confirmed.
//
// Stripe forgets idempotency keys after 24 hours at the earliest (https://docs.stripe.com/api/idempotent_requests); the saga
// sends nothing again past that.
//
// Amounts are in Stripe's minor units, which are those of ISO 4217 but for the currencies of
// https://docs.stripe.com/currencies#special-cases.
package stripepay

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v85"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

const (
	// maxAnswer bounds what is read of an answer, in bytes: a page of a hundred intents with their charges.
	maxAnswer = 4 << 20
	// pageSize is the most that Stripe lists in one answer.
	pageSize = 100
)

// What an intent's metadata holds.
const (
	metaOrder = "order_id"
	metaKey   = "idempotency_key"
)

// Client is a [payment.Provider].
type Client struct {
	api  *stripe.Client
	http *http.Client
}

// New returns the client of the Stripe account that a secret or restricted key belongs to. base is the API's URL; the default,
// "", is Stripe's own. The errors of New and of the methods hold neither the key nor anything of the payer.
func New(key, base string) (*Client, error) {
	if strings.ContainsAny(key, " \t\r\n") || !strings.HasPrefix(key, "sk_") && !strings.HasPrefix(key, "rk_") {
		return nil, errors.New("the Stripe key must be a secret key (sk_…) or a restricted one (rk_…)")
	}
	if u, err := url.Parse(base); base != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return nil, errors.New("the payment provider's URL must look like https://payments.example")
	}
	client := payment.NewHTTPClient(maxAnswer)
	config := &stripe.BackendConfig{
		HTTPClient: client,
		// Whether to send a request again is the saga's decision: only it knows what has been sent before.
		MaxNetworkRetries: stripe.Int64(0),
		EnableTelemetry:   stripe.Bool(false),
		// The library would log the answers of Stripe, with all that they say of the payer.
		LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull},
	}
	if base != "" {
		config.URL = stripe.String(strings.TrimSuffix(base, "/"))
	}
	api := stripe.NewClient(key, stripe.WithBackends(stripe.NewBackendsWithConfig(config)))
	return &Client{api: api, http: client}, nil
}

// Close ends the connections that are kept for the next request.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// shown is an intent in the words of package payment.
func shown(in *stripe.PaymentIntent) payment.Intent {
	got := payment.Intent{
		ID: in.ID, Status: status(in), Amount: in.Amount, Currency: strings.ToUpper(string(in.Currency)), Reference: in.Metadata[metaOrder],
	}
	if in.PaymentMethod != nil {
		got.Method = in.PaymentMethod.ID
	}
	if charge := in.LatestCharge; charge != nil {
		got.Refunded = charge.AmountRefunded
		if charge.Refunded { // the whole of it
			got.Refund = charge.ID // of an account whose charges do not show their refunds
			if charge.Refunds != nil && len(charge.Refunds.Data) > 0 {
				got.Refund = charge.Refunds.Data[0].ID
			}
		}
	}
	return got
}

// status is where an intent stands (https://docs.stripe.com/payments/paymentintents/lifecycle). What is not for good is shown
// as Stripe names it.
func status(in *stripe.PaymentIntent) payment.Status {
	switch in.Status {
	case stripe.PaymentIntentStatusSucceeded:
		return payment.Succeeded
	case stripe.PaymentIntentStatusCanceled:
		return payment.Canceled
	case stripe.PaymentIntentStatusRequiresConfirmation:
		return payment.Unconfirmed
	case stripe.PaymentIntentStatusRequiresPaymentMethod:
		// Our intents are created with a payment method, which a decline takes away.
		if in.LastPaymentError != nil {
			return payment.Declined
		}
	case stripe.PaymentIntentStatusProcessing, stripe.PaymentIntentStatusRequiresAction, stripe.PaymentIntentStatusRequiresCapture:
	}
	return payment.Status(in.Status)
}

// expanded has Stripe show an intent's charge and its refunds in the same answer.
var expanded = []*string{stripe.String("latest_charge.refunds")}

// Create implements [payment.Provider].
func (c *Client) Create(ctx context.Context, key string, want payment.Intent) (payment.Intent, error) {
	params := &stripe.PaymentIntentCreateParams{
		Amount: stripe.Int64(want.Amount), Currency: stripe.String(strings.ToLower(want.Currency)), PaymentMethod: stripe.String(want.Method),
		ConfirmationMethod: stripe.String(string(stripe.PaymentIntentConfirmationMethodManual)),
		CaptureMethod:      stripe.String(string(stripe.PaymentIntentCaptureMethodAutomatic)),
		PaymentMethodTypes: []*string{stripe.String("card")},
		Metadata:           map[string]string{metaOrder: want.Reference, metaKey: key},
	}
	params.SetIdempotencyKey(key)
	got, err := c.api.V1PaymentIntents.Create(ctx, params)
	if err := answered(err); err != nil {
		return payment.Intent{}, fmt.Errorf("create payment intent: %w", err)
	}
	return shown(got), nil
}

// Confirm implements [payment.Provider].
func (c *Client) Confirm(ctx context.Context, key, id string) (payment.Intent, error) {
	// Nobody is there to be sent to a bank's page: a card that asks for one is declined.
	params := &stripe.PaymentIntentConfirmParams{ErrorOnRequiresAction: stripe.Bool(true), Expand: expanded}
	params.SetIdempotencyKey(key)
	got, err := c.api.V1PaymentIntents.Confirm(ctx, id, params)
	if err := answered(err); err != nil {
		return payment.Intent{}, fmt.Errorf("confirm payment intent %s: %w", id, err)
	}
	return shown(got), nil
}

// Cancel implements [payment.Provider]. It says "charged already" on the word of the intent itself, and "cancelled" of one
// that was cancelled before, which Stripe refuses to cancel again.
func (c *Client) Cancel(ctx context.Context, id string) (bool, error) {
	// The library gives each cancel a key of its own. Under a constant one Stripe would repeat its first answer, such as that
	// the intent is being charged, for a day; and a second cancel does no harm.
	params := &stripe.PaymentIntentCancelParams{Expand: expanded}
	in, err := c.api.V1PaymentIntents.Cancel(ctx, id, params)
	if err = answered(err); err != nil {
		refused, ok := errors.AsType[*answer](err)
		if !ok || refused.code != stripe.ErrorCodePaymentIntentUnexpectedState {
			return false, fmt.Errorf("cancel payment intent %s: %w", id, err)
		}
		got, known, findErr := c.ByID(ctx, id)
		switch {
		case findErr == nil && known && got.Status == payment.Succeeded:
			return false, nil
		case findErr == nil && known && got.Status == payment.Canceled:
			return true, nil
		case findErr == nil:
			findErr = fmt.Errorf("the intent is shown as %q", got.Status)
		}
		return false, fmt.Errorf("cancel payment intent %s: %w; %w", id, err, findErr)
	}
	if in.Status != stripe.PaymentIntentStatusCanceled {
		return false, fmt.Errorf("cancel payment intent %s: it is %s", id, in.Status)
	}
	return true, nil
}

// Refund implements [payment.Provider].
func (c *Client) Refund(ctx context.Context, key, id string) (string, error) {
	params := &stripe.RefundCreateParams{PaymentIntent: stripe.String(id)}
	params.SetIdempotencyKey(key)
	got, err := c.api.V1Refunds.Create(ctx, params)
	if refused, ok := errors.AsType[*stripe.Error](err); ok && refused.Code == stripe.ErrorCodeChargeAlreadyRefunded {
		in, known, err := c.ByID(ctx, id)
		if err != nil {
			return "", err
		}
		if !known || in.Refund == "" {
			return "", fmt.Errorf("refund payment intent %s: Stripe has refunded it but shows no refund", id)
		}
		return in.Refund, nil
	}
	if err := answered(err); err != nil {
		return "", fmt.Errorf("refund payment intent %s: %w", id, err)
	}
	// A pending refund is on its way to the payer, and Stripe has taken it from our balance.
	if got.Status == stripe.RefundStatusFailed || got.Status == stripe.RefundStatusCanceled {
		return "", fmt.Errorf("refund payment intent %s: refund %s is %s", id, got.ID, got.Status)
	}
	return got.ID, nil
}

// ByID implements [payment.Provider].
func (c *Client) ByID(ctx context.Context, id string) (payment.Intent, bool, error) {
	got, err := c.api.V1PaymentIntents.Retrieve(ctx, id, &stripe.PaymentIntentRetrieveParams{Expand: expanded})
	err = answered(err)
	if payment.RefusedAs(err) == payment.NotFound {
		return payment.Intent{}, false, nil
	}
	if err != nil {
		return payment.Intent{}, false, fmt.Errorf("look up payment intent: %w", err)
	}
	return shown(got), true, nil
}

// quoted makes a text of Stripe's search language (https://docs.stripe.com/search#query-structure).
var quoted = strings.NewReplacer(`\`, `\\`, `'`, `\'`)

// ByKey implements [payment.Provider], by a search that may be behind.
func (c *Client) ByKey(ctx context.Context, key string) (payment.Intent, bool, error) {
	params := &stripe.PaymentIntentSearchParams{Expand: []*string{stripe.String("data.latest_charge.refunds")}}
	params.Query = "metadata['" + metaKey + "']:'" + quoted.Replace(key) + "'"
	params.Limit = stripe.Int64(1)
	for got, err := range c.api.V1PaymentIntents.Search(ctx, params).All(ctx) {
		if err := answered(err); err != nil {
			return payment.Intent{}, false, fmt.Errorf("look up payment intent: %w", err)
		}
		return shown(got), true, nil
	}
	return payment.Intent{}, false, nil
}

// List implements [payment.Provider]. Stripe keeps whole seconds, and lists the newest first.
func (c *Client) List(ctx context.Context, since, until time.Time, after string) (intents []payment.Intent, next string, err error) {
	params := &stripe.PaymentIntentListParams{
		CreatedRange: &stripe.RangeQueryParams{GreaterThanOrEqual: seconds(since), LesserThan: seconds(until)},
		Expand:       []*string{stripe.String("data.latest_charge.refunds")},
	}
	params.Limit = stripe.Int64(pageSize)
	if after != "" {
		params.StartingAfter = stripe.String(after)
	}
	for in, err := range c.api.V1PaymentIntents.List(ctx, params).All(ctx) {
		if err := answered(err); err != nil {
			return nil, "", fmt.Errorf("list payment intents: %w", err)
		}
		if intents = append(intents, shown(in)); len(intents) == pageSize {
			return intents, in.ID, nil // the iterator would fetch the next page
		}
	}
	return intents, "", nil
}

// seconds rounds up at both ends, so that of two spans that meet one has the intents of the second in which they do.
func seconds(at time.Time) int64 { return at.Add(time.Second - 1).Unix() }
