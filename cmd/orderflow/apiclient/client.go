package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds what is read of one answer, so that a wrong address cannot fill the memory.
const maxAnswer = 16 << 20

// Client calls the api at one address with one key. It is safe for concurrent use.
type Client struct {
	base string
	key  string
	http *http.Client
}

// New returns a client of the api at base, such as "http://127.0.0.1:8080", that identifies itself with key.
// It keeps up to conns idle connections open; [Client.Close] closes them.
func New(base, key string, conns int) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns = conns
	transport.MaxIdleConnsPerHost = conns
	return &Client{base: strings.TrimRight(base, "/"), key: key, http: &http.Client{Transport: transport}}
}

// Base returns the address the client calls.
func (c *Client) Base() string { return c.base }

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Place sends body as a new order under the idempotency key. Sent again with the same key and body, it finds the order
// that the first request made.
func (c *Client) Place(ctx context.Context, idempotencyKey string, body []byte) (Placed, error) {
	header := http.Header{"Idempotency-Key": {idempotencyKey}, "Content-Type": {"application/json"}}
	answer, err := c.do(ctx, http.MethodPost, "/v1/orders", header, body)
	if err != nil {
		return Placed{}, err
	}
	placed := Placed{Status: answer.status, Replayed: answer.header.Get("Idempotent-Replayed") == "true"}
	placed.Order, err = decodeOrder(answer.body)
	return placed, err
}

// Order reads one order.
func (c *Client) Order(ctx context.Context, id string) (Order, error) {
	answer, err := c.do(ctx, http.MethodGet, "/v1/orders/"+url.PathEscape(id), nil, nil)
	if err != nil {
		return Order{}, err
	}
	return decodeOrder(answer.body)
}

// Await reads one order as soon as it has reached a final state, or as it is when the api's patience has ended, which is
// after patience at the latest.
func (c *Client) Await(ctx context.Context, id string, patience time.Duration) (Order, error) {
	q := url.Values{"wait_for": {"terminal"}, "timeout": {strconv.Itoa(max(1, int(patience.Seconds()))) + "s"}}
	answer, err := c.do(ctx, http.MethodGet, "/v1/orders/"+url.PathEscape(id)+"?"+q.Encode(), nil, nil)
	if err != nil {
		return Order{}, err
	}
	return decodeOrder(answer.body)
}

// Orders reads one page of orders.
func (c *Client) Orders(ctx context.Context, f Filter) (Page, error) {
	q := url.Values{}
	for name, value := range map[string]string{"user_id": f.UserID, "status": f.Status, "cursor": f.Cursor} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	path := "/v1/orders"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	answer, err := c.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return Page{}, err
	}
	return decodePage(answer.body)
}

// Cancel asks for an order to be cancelled and returns it as it was then.
func (c *Client) Cancel(ctx context.Context, id string) (Order, error) {
	answer, err := c.do(ctx, http.MethodPost, "/v1/orders/"+url.PathEscape(id)+"/cancel", nil, nil)
	if err != nil {
		return Order{}, err
	}
	return decodeOrder(answer.body)
}

// Refund is a refund that was accepted.
type Refund struct {
	RefundID    string    `json:"refund_id"`
	OrderID     string    `json:"id"`
	Reason      string    `json:"reason"`
	RequestedBy string    `json:"requested_by"`
	RequestedAt time.Time `json:"requested_at"`

	Raw json.RawMessage `json:"-"` // as the api wrote it
}

// Refund asks for an order's money to be paid back. An order that is refunded already, or is being refunded, answers as it
// did the first time.
func (c *Client) Refund(ctx context.Context, id, reason string) (Refund, error) {
	body, err := json.Marshal(map[string]string{"reason": reason})
	if err != nil {
		return Refund{}, fmt.Errorf("encode refund: %w", err)
	}
	answer, err := c.do(ctx, http.MethodPost, "/v1/orders/"+url.PathEscape(id)+"/refund", http.Header{"Content-Type": {"application/json"}}, body)
	if err != nil {
		return Refund{}, err
	}
	r := Refund{Raw: answer.body}
	return r, decode(answer.body, &r, "a refund")
}

// Timeline reads what happened to an order, as far as the api knows.
func (c *Client) Timeline(ctx context.Context, id string) (Timeline, error) {
	answer, err := c.do(ctx, http.MethodGet, "/v1/orders/"+url.PathEscape(id)+"/timeline", nil, nil)
	if err != nil {
		return Timeline{}, err
	}
	var t Timeline
	return t, decode(answer.body, &t, "a timeline")
}

// Products reads the catalog.
func (c *Client) Products(ctx context.Context) ([]Product, error) {
	answer, err := c.do(ctx, http.MethodGet, "/v1/products", nil, nil)
	if err != nil {
		return nil, err
	}
	return decodeProducts(answer.body)
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (c *Client) do(ctx context.Context, method, path string, header http.Header, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("address of the api: %w", err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	req.Header.Set("Authorization", "Bearer "+c.key)
	if header.Get("Idempotency-Key") != "" {
		// net/http repeats a request with this header on a broken connection by itself; without GetBody it cannot, and
		// the caller sees, counts and journals every attempt.
		req.GetBody = nil
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, &Unreachable{Base: c.base, Err: err}
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		// The status came but the body did not: as far as the caller can tell, nothing was answered.
		return answer{}, &Unreachable{Base: c.base, Err: err}
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return answer{}, newProblem(resp, got)
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: got}, nil
}

func decode(body []byte, into any, what string) error {
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode %s from the api: %w", what, err)
	}
	return nil
}
