// Package sandboxpay is the client of the payment provider that services/sandbox plays, and of whoever speaks its protocol.
package sandboxpay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

// maxAnswer bounds what is read of the provider's answer, in bytes.
const maxAnswer = 64 << 10

// Client is a [payment.Provider].
type Client struct {
	base   string
	client *http.Client
}

// New returns the client of the provider at a base URL. It refuses anything but an http or https URL; the error does not
// repeat it, for it may hold a password.
func New(base string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the payment provider's URL must look like https://user:password@payments.example/path")
	}
	return &Client{base: strings.TrimSuffix(base, "/"), client: payment.NewHTTPClient(maxAnswer)}, nil
}

// Close ends the connections that are kept for the next request.
func (c *Client) Close() { c.client.CloseIdleConnections() }

// intent is a payment intent on the wire.
type intent struct {
	ID            string `json:"id"`
	Status        string `json:"status"`
	Amount        int64  `json:"amount"`
	Currency      string `json:"currency"`
	PaymentMethod string `json:"payment_method"`
	Reference     string `json:"reference"`
	Refund        string `json:"refund"`
}

// shown is the intent in the words of package payment, which this protocol shares.
func (i intent) shown() payment.Intent {
	got := payment.Intent{
		ID: i.ID, Status: payment.Status(i.Status), Amount: i.Amount, Currency: i.Currency, Method: i.PaymentMethod,
		Reference: i.Reference, Refund: i.Refund,
	}
	if i.Refund != "" { // this protocol refunds the whole
		got.Refunded = i.Amount
	}
	return got
}

// Create implements [payment.Provider].
func (c *Client) Create(ctx context.Context, key string, want payment.Intent) (payment.Intent, error) {
	body := map[string]any{
		"amount": want.Amount, "currency": want.Currency, "payment_method": want.Method, "reference": want.Reference,
	}
	var got intent
	if err := c.send(ctx, http.MethodPost, "/v1/payment_intents", key, body, &got); err != nil {
		return payment.Intent{}, fmt.Errorf("create payment intent: %w", err)
	}
	return got.shown(), nil
}

// Confirm implements [payment.Provider].
func (c *Client) Confirm(ctx context.Context, key, id string) (payment.Intent, error) {
	var got intent
	if err := c.send(ctx, http.MethodPost, "/v1/payment_intents/"+url.PathEscape(id)+"/confirm", key, nil, &got); err != nil {
		return payment.Intent{}, fmt.Errorf("confirm payment intent %s: %w", id, err)
	}
	return got.shown(), nil
}

// Cancel implements [payment.Provider]. It says "charged already" on the word of the intent itself, because a provider refuses
// for other reasons too, and an order that passes for paid is shipped.
func (c *Client) Cancel(ctx context.Context, id string) (bool, error) {
	var got intent
	err := c.send(ctx, http.MethodPost, "/v1/payment_intents/"+url.PathEscape(id)+"/cancel", "", nil, &got)
	if r, ok := errors.AsType[*answer](err); ok && r.status == http.StatusConflict {
		in, _, findErr := c.ByID(ctx, id)
		if findErr == nil && in.Status == payment.Succeeded {
			return false, nil
		}
		if findErr == nil {
			findErr = fmt.Errorf("the intent is shown as %q, not as %s", in.Status, payment.Succeeded)
		}
		err = fmt.Errorf("%w; %w", err, findErr)
	}
	if err != nil {
		return false, fmt.Errorf("cancel payment intent %s: %w", id, err)
	}
	if payment.Status(got.Status) != payment.Canceled {
		return false, fmt.Errorf("cancel payment intent %s: it is %s", id, got.Status)
	}
	return true, nil
}

// Refund implements [payment.Provider].
func (c *Client) Refund(ctx context.Context, key, id string) (string, error) {
	var got struct {
		ID string `json:"id"`
	}
	err := c.send(ctx, http.MethodPost, "/v1/refunds", key, map[string]any{"payment_intent": id}, &got)
	if r, ok := errors.AsType[*answer](err); ok && r.Code == "already_refunded" {
		in, ok, err := c.ByID(ctx, id)
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

// ByID implements [payment.Provider].
func (c *Client) ByID(ctx context.Context, id string) (payment.Intent, bool, error) {
	return c.find(ctx, "/v1/payment_intents/"+url.PathEscape(id))
}

// ByKey implements [payment.Provider].
func (c *Client) ByKey(ctx context.Context, key string) (payment.Intent, bool, error) {
	return c.find(ctx, "/v1/payment_intents?idempotency_key="+url.QueryEscape(key))
}

// List implements [payment.Provider].
func (c *Client) List(ctx context.Context, since, until time.Time, after string) (intents []payment.Intent, next string, err error) {
	q := url.Values{"created_since": {since.UTC().Format(time.RFC3339Nano)}, "created_until": {until.UTC().Format(time.RFC3339Nano)}, "after": {after}}
	var page struct {
		Data      []intent `json:"data"`
		NextAfter string   `json:"next_after"`
	}
	if err := c.send(ctx, http.MethodGet, "/v1/payment_intents?"+q.Encode(), "", nil, &page); err != nil {
		return nil, "", fmt.Errorf("list payment intents: %w", err)
	}
	if page.NextAfter != "" && page.NextAfter <= after {
		return nil, "", fmt.Errorf("list payment intents: the page behind %q goes on behind %q", after, page.NextAfter)
	}
	for _, in := range page.Data {
		intents = append(intents, in.shown())
	}
	return intents, page.NextAfter, nil
}

func (c *Client) find(ctx context.Context, path string) (payment.Intent, bool, error) {
	var got intent
	err := c.send(ctx, http.MethodGet, path, "", nil, &got)
	if payment.RefusedAs(err) == payment.NotFound {
		return payment.Intent{}, false, nil
	}
	if err != nil {
		return payment.Intent{}, false, fmt.Errorf("look up payment intent: %w", err)
	}
	return got.shown(), true, nil
}

// answer is one that is not a success.
type answer struct {
	status int
	Code   string `json:"code"`
}

func (a *answer) Error() string { return a.Unwrap().Error() }

// Unwrap returns what the answer means to those who know no provider.
func (a *answer) Unwrap() error {
	return &payment.Refusal{Kind: a.kind(), Said: fmt.Sprintf("%d %s", a.status, a.Code)}
}

func (a *answer) kind() payment.Kind {
	switch {
	case a.Code == "idempotency_key_reused":
		return payment.KeyReused
	case a.Code == "intent_canceled":
		return payment.IntentCanceled
	case a.status == http.StatusPaymentRequired:
		return payment.PaymentDeclined
	case a.status == http.StatusBadRequest, a.status == http.StatusUnprocessableEntity:
		return payment.Invalid
	case a.status == http.StatusNotFound:
		return payment.NotFound
	}
	return payment.Undecided
}

// send makes one request and decodes its answer. ctx bounds it in time, maxAnswer in size.
func (c *Client) send(ctx context.Context, method, path, key string, body, into any) error {
	req, err := c.request(ctx, method, path, key, body)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the payment provider's answer: %w", err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		said := &answer{status: resp.StatusCode}
		_ = json.Unmarshal(raw, said) // a proxy's error page has no code; the status says enough
		return said
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("decode the payment provider's answer: %w", err)
	}
	return nil
}

func (c *Client) request(ctx context.Context, method, path, key string, body any) (*http.Request, error) {
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode payment request: %w", err)
		}
		payload = bytes.NewReader(raw)
	} else if method == http.MethodPost {
		payload = strings.NewReader("{}") // a request without a body would be sent again by net/http
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, fmt.Errorf("payment request: %w", err)
	}
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	return req, nil
}
