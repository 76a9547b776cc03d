package order

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// The states of a payment intent that the saga acts on. An intent in any other state is still on its way.
const (
	intentUnconfirmed = "requires_confirmation"
	intentSucceeded   = "succeeded"
	intentDeclined    = "declined"
	intentCanceled    = "canceled"
)

// maxAnswer bounds what is read of the provider's answer, in bytes.
const maxAnswer = 64 << 10

// errBreakerOpen means that the provider failed so often that it is left alone for a moment. Nothing was sent.
var errBreakerOpen = errors.New("payment provider is failing, circuit open")

// intent is a payment intent as the provider shows it.
type intent struct {
	ID            string `json:"id"`
	Status        string `json:"status"`
	Amount        int64  `json:"amount"` // minor units
	Currency      string `json:"currency"`
	PaymentMethod string `json:"payment_method"`
	Reference     string `json:"reference"`
	Refund        string `json:"refund"`
}

// refusal is an answer of the provider that is not a success.
type refusal struct {
	status  int
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (r *refusal) Error() string {
	return fmt.Sprintf("payment provider answered %d %s", r.status, r.Code)
}

// gateway is the client of the payment provider. It sends each request once: whether to send it again is the saga's
// decision, because only the saga knows what has been sent before.
type gateway struct {
	base    string
	client  *http.Client
	breaker circuitbreaker.CircuitBreaker[any]
}

func newGateway(base string) (*gateway, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// The parser's message, and the URL that it could not read, may hold a password.
		return nil, errors.New("the payment provider's URL must look like https://user:password@payments.example/path")
	}
	return &gateway{
		base: strings.TrimSuffix(base, "/"),
		client: &http.Client{
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				DialContext:            (&net.Dialer{Timeout: time.Second}).DialContext,
				ForceAttemptHTTP2:      true,
				MaxIdleConnsPerHost:    64,
				IdleConnTimeout:        30 * time.Second,
				MaxResponseHeaderBytes: maxAnswer,
			},
			// A redirect would send a payment to somewhere nobody configured.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		// Only a provider that fails nearly everyone opens it: one user's payment method that always times out must not.
		breaker: circuitbreaker.NewBuilder[any]().
			WithFailureRateThreshold(0.8, 50, 10*time.Second).
			WithDelay(time.Second).
			Build(),
	}, nil
}

// close ends the connections that are kept for the next request.
func (g *gateway) close() { g.client.CloseIdleConnections() }

// create makes an intent, or returns the one that key has made before. It moves no money.
func (g *gateway) create(ctx context.Context, key string, want intent) (intent, error) {
	body := map[string]any{
		"amount": want.Amount, "currency": want.Currency, "payment_method": want.PaymentMethod, "reference": want.Reference,
	}
	var got intent
	if err := g.send(ctx, http.MethodPost, "/v1/payment_intents", key, body, &got); err != nil {
		return intent{}, fmt.Errorf("create payment intent: %w", err)
	}
	return got, nil
}

// confirm charges an intent.
func (g *gateway) confirm(ctx context.Context, key, id string) (intent, error) {
	var got intent
	if err := g.send(ctx, http.MethodPost, "/v1/payment_intents/"+url.PathEscape(id)+"/confirm", key, nil, &got); err != nil {
		return intent{}, fmt.Errorf("confirm payment intent %s: %w", id, err)
	}
	return got, nil
}

// cancel makes sure that an intent is never charged, whatever is still on its way to the provider. It reports false for
// one that was charged already: on the word of the intent itself, because a provider refuses for other reasons too, and an
// order that passes for paid is shipped.
func (g *gateway) cancel(ctx context.Context, id string) (bool, error) {
	var got intent
	err := g.send(ctx, http.MethodPost, "/v1/payment_intents/"+url.PathEscape(id)+"/cancel", "", nil, &got)
	if r, ok := errors.AsType[*refusal](err); ok && r.status == http.StatusConflict {
		in, _, findErr := g.byID(ctx, id)
		if findErr == nil && in.Status == intentSucceeded {
			return false, nil
		}
		if findErr == nil {
			findErr = fmt.Errorf("the intent is shown as %q, not as %s", in.Status, intentSucceeded)
		}
		err = fmt.Errorf("%w; %w", err, findErr)
	}
	if err != nil {
		return false, fmt.Errorf("cancel payment intent %s: %w", id, err)
	}
	if got.Status != intentCanceled {
		return false, fmt.Errorf("cancel payment intent %s: it is %s", id, got.Status)
	}
	return true, nil
}

// refund pays a charged intent back and returns the refund's id. A refund that was made under another key counts too: the
// money is back.
func (g *gateway) refund(ctx context.Context, key, id string) (string, error) {
	var got struct {
		ID string `json:"id"`
	}
	err := g.send(ctx, http.MethodPost, "/v1/refunds", key, map[string]any{"payment_intent": id}, &got)
	if r, ok := errors.AsType[*refusal](err); ok && r.Code == "already_refunded" {
		in, ok, err := g.byID(ctx, id)
		if err != nil {
			return "", err
		}
		if !ok || in.Refund == "" {
			return "", fmt.Errorf("refund payment intent %s: the provider has refunded it but shows no refund", id)
		}
		return in.Refund, nil
	}
	if err != nil {
		return "", fmt.Errorf("refund payment intent %s: %w", id, err)
	}
	return got.ID, nil
}

// byID returns an intent, and whether the provider knows it.
func (g *gateway) byID(ctx context.Context, id string) (intent, bool, error) {
	return g.find(ctx, "/v1/payment_intents/"+url.PathEscape(id))
}

// byKey returns the intent that was created under key, and whether there is one.
func (g *gateway) byKey(ctx context.Context, key string) (intent, bool, error) {
	return g.find(ctx, "/v1/payment_intents?idempotency_key="+url.QueryEscape(key))
}

// list returns a page of the intents that were created in [since, until), behind the one called after, and what to ask for the
// next page with: "" on the last.
func (g *gateway) list(ctx context.Context, since, until time.Time, after string) (intents []intent, next string, err error) {
	q := url.Values{"created_since": {since.UTC().Format(time.RFC3339Nano)}, "created_until": {until.UTC().Format(time.RFC3339Nano)}, "after": {after}}
	var page struct {
		Data      []intent `json:"data"`
		NextAfter string   `json:"next_after"`
	}
	if err := g.send(ctx, http.MethodGet, "/v1/payment_intents?"+q.Encode(), "", nil, &page); err != nil {
		return nil, "", fmt.Errorf("list payment intents: %w", err)
	}
	if page.NextAfter != "" && page.NextAfter <= after {
		return nil, "", fmt.Errorf("list payment intents: the page behind %q goes on behind %q", after, page.NextAfter)
	}
	return page.Data, page.NextAfter, nil
}

func (g *gateway) find(ctx context.Context, path string) (intent, bool, error) {
	var got intent
	err := g.send(ctx, http.MethodGet, path, "", nil, &got)
	if r, ok := errors.AsType[*refusal](err); ok && r.status == http.StatusNotFound {
		return intent{}, false, nil
	}
	if err != nil {
		return intent{}, false, fmt.Errorf("look up payment intent: %w", err)
	}
	return got, true, nil
}

// send makes one request and decodes its answer. ctx bounds it in time, maxAnswer in size.
func (g *gateway) send(ctx context.Context, method, path, key string, body, answer any) error {
	if !g.breaker.TryAcquirePermit() {
		return errBreakerOpen
	}
	status, raw, err := g.roundTrip(ctx, method, path, key, body)
	if err != nil || status >= http.StatusInternalServerError {
		g.breaker.RecordFailure()
	} else {
		g.breaker.RecordSuccess()
	}
	if err != nil {
		return err
	}
	if status >= http.StatusMultipleChoices {
		r := &refusal{status: status}
		_ = json.Unmarshal(raw, r) // a proxy's error page has no code; the status says enough
		return r
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("decode the payment provider's answer: %w", err)
	}
	return nil
}

func (g *gateway) roundTrip(ctx context.Context, method, path, key string, body any) (int, []byte, error) {
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, nil, fmt.Errorf("encode payment request: %w", err)
		}
		payload = bytes.NewReader(raw)
	} else if method == http.MethodPost {
		payload = strings.NewReader("{}")
	}
	req, err := http.NewRequestWithContext(ctx, method, g.base+path, payload)
	if err != nil {
		return 0, nil, fmt.Errorf("payment request: %w", err)
	}
	// net/http sends a request with an Idempotency-Key again by itself when the connection breaks. Without GetBody it
	// cannot: the saga has to know that an answer was lost.
	req.GetBody = nil
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read the payment provider's answer: %w", err)
	}
	if len(raw) > maxAnswer {
		return 0, nil, fmt.Errorf("the payment provider's answer is longer than %d bytes", maxAnswer)
	}
	return resp.StatusCode, raw, nil
}

// neverSent reports whether err is certain to mean that the provider has seen nothing of the request.
func neverSent(err error) bool {
	if errors.Is(err, errBreakerOpen) {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
