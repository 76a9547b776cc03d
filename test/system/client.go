package system

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Client is a user of the api who can also look into the outside world: at what the payment provider charged and what mail
// was accepted.
type Client struct {
	api, key, sandbox string
	mails             string // base URL of a mailpit, "" when the sandbox takes the mails
	http              *http.Client
}

// NewClient returns a client of the api at base and of the sandbox. The caller closes it.
func NewClient(base, key, sandbox string) *Client {
	return &Client{api: base, key: key, sandbox: sandbox, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 3 * time.Minute}}
}

// Close ends the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// NewOrder is the body of a request for an order.
type NewOrder struct {
	UserID        string `json:"user_id"`
	Currency      string `json:"currency"`
	Email         string `json:"email"`
	PaymentMethod string `json:"payment_method"`
	Items         []Item `json:"items"`
}

// Item is one line of an order.
type Item struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// Order is what the api says of one.
type Order struct {
	ID     string `json:"id"`
	UserID string `json:"user_id"`
	Status string `json:"status"`
	Reason string `json:"reason"`
	Total  struct {
		Amount   int64  `json:"amount"`
		Currency string `json:"currency"`
	} `json:"total"`
}

// Answer is an answer of the api.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// OrderOf returns an order of one brass pen, which pays with method, by user. Every test has users of its own.
func OrderOf(user, method string) NewOrder {
	return NewOrder{UserID: user, Currency: "EUR", Email: user + "@example.com", PaymentMethod: method, Items: []Item{{"sku-pen", 1}}}
}

// NewUser returns a user nobody else has.
func NewUser() string { return "user-" + uuid.NewString()[:13] }

// Post places an order under a key, once. It is the request as such: any answer will do.
func (c *Client) Post(ctx context.Context, idempotencyKey string, o NewOrder) (Answer, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return Answer{}, err
	}
	return c.do(ctx, http.MethodPost, c.api+"/v1/orders", map[string]string{"Idempotency-Key": idempotencyKey}, body)
}

// Place places an order and fails the test unless it was accepted, within a minute.
func (c *Client) Place(t testing.TB, o NewOrder) Order {
	t.Helper()
	return c.PlaceAs(t, uuid.NewString(), o)
}

// PlaceAs places an order under a key. Like any client it asks again when the api says that it cannot answer now, as on a machine
// that is busy with other things.
func (c *Client) PlaceAs(t testing.TB, key string, o NewOrder) Order {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Second) {
		answer, err := c.Post(t.Context(), key, o)
		switch {
		case err != nil:
			t.Fatalf("place an order: %v", err)
		case answer.Status == http.StatusCreated:
			return decode[Order](t, answer.Body)
		case answer.Status != http.StatusServiceUnavailable || time.Now().After(deadline):
			t.Fatalf("place an order: %d %s", answer.Status, answer.Body)
		}
	}
}

// Get returns an order.
func (c *Client) Get(t testing.TB, id string) Order {
	t.Helper()
	answer, err := c.do(t.Context(), http.MethodGet, c.api+"/v1/orders/"+id, nil, nil)
	if err != nil || answer.Status != http.StatusOK {
		t.Fatalf("get order %s: %d %s, %v", id, answer.Status, answer.Body, err)
	}
	return decode[Order](t, answer.Body)
}

// Cancel asks for an order to be cancelled.
func (c *Client) Cancel(ctx context.Context, id string) (Answer, error) {
	return c.do(ctx, http.MethodPost, c.api+"/v1/orders/"+id+"/cancel", nil, nil)
}

// AwaitStatus waits until an order has one of the statuses and returns it.
func (c *Client) AwaitStatus(t testing.TB, id string, limit time.Duration, statuses ...string) Order {
	t.Helper()
	var o Order
	Eventually(t, limit, fmt.Sprintf("order %s is %v", id, statuses), func() error {
		o = c.Get(t, id)
		if !slices.Contains(statuses, o.Status) {
			return fmt.Errorf("it is %s %s", o.Status, o.Reason)
		}
		return nil
	})
	return o
}

// Entry is one line of the sandbox's journal: something that really happened to money or mail.
type Entry struct {
	Seq       int64    `json:"seq"`
	Kind      string   `json:"kind"` // charge, refund, cancel or mail
	Reference string   `json:"reference"`
	Amount    int64    `json:"amount"`
	Currency  string   `json:"currency"`
	EmailKind string   `json:"email_kind"`
	To        []string `json:"to"`
}

// Journal returns what has happened outside so far.
func (c *Client) Journal(ctx context.Context) ([]Entry, error) {
	answer, err := c.do(ctx, http.MethodGet, c.sandbox+"/v1/journal", nil, nil)
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK {
		return nil, fmt.Errorf("read the sandbox's journal: %d %s", answer.Status, answer.Body)
	}
	var entries []Entry
	lines := bufio.NewScanner(bytes.NewReader(answer.Body))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read the sandbox's journal: %w", err)
		}
		entries = append(entries, e)
	}
	if err := lines.Err(); err != nil || c.mails == "" {
		return entries, err
	}
	mails, err := c.mailpit(ctx)
	return append(entries, mails...), err
}

// Outside returns what happened outside for one order, as words: "charge 2750", "mail confirmation", in order.
func (c *Client) Outside(t testing.TB, orderID string) []string {
	t.Helper()
	entries, err := c.Journal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	happened := []string{}
	for _, e := range entries {
		switch {
		case e.Reference != orderID:
		case e.Kind == "mail":
			happened = append(happened, "mail "+e.EmailKind)
		default:
			happened = append(happened, fmt.Sprintf("%s %d", e.Kind, e.Amount))
		}
	}
	return happened
}

// AwaitOutside waits until exactly want has happened outside for an order, in any order.
func (c *Client) AwaitOutside(t testing.TB, orderID string, want ...string) {
	t.Helper()
	slices.Sort(want)
	Eventually(t, 2*time.Minute, fmt.Sprintf("outside, order %s has %q", orderID, want), func() error {
		got := c.Outside(t, orderID)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
}

func (c *Client) do(ctx context.Context, method, target string, header map[string]string, body []byte) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	req.GetBody = nil // net/http would repeat a request with an Idempotency-Key by itself
	resp, err := c.http.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	return Answer{resp.StatusCode, resp.Header, raw}, nil
}

func decode[T any](t testing.TB, raw []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("decode %s: %v", raw, err)
	}
	return v
}
