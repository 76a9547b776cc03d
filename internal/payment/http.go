package payment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// ErrCircuitOpen means that the provider failed so often that it is left alone for a moment. Nothing was sent.
var ErrCircuitOpen = errors.New("payment provider is failing, circuit open")

// maxHeader bounds the headers of an answer, in bytes.
const maxHeader = 64 << 10

// NewHTTPClient returns the client that a [Provider] is built on. It sends each request once, follows no redirect, reads at
// most maxAnswer bytes of an answer, and leaves a provider that fails nearly everyone alone for a second
// ([ErrCircuitOpen]). Requests are bounded in time by their context only.
func NewHTTPClient(maxAnswer int64) *http.Client {
	return &http.Client{
		Transport: &guard{
			maxAnswer: maxAnswer,
			next: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				DialContext:            (&net.Dialer{Timeout: time.Second}).DialContext,
				ForceAttemptHTTP2:      true,
				MaxIdleConnsPerHost:    64,
				IdleConnTimeout:        30 * time.Second,
				MaxResponseHeaderBytes: maxHeader,
			},
			// Only a provider that fails nearly everyone opens it: one user's payment method that always times out must not.
			breaker: circuitbreaker.NewBuilder[any]().
				WithFailureRateThreshold(0.8, 50, 10*time.Second).
				WithDelay(time.Second).
				Build(),
		},
	}
}

// guard stands between a provider's client and the network. It reads the whole answer, so that one that breaks off counts as
// a failure of the provider.
type guard struct {
	next      *http.Transport
	breaker   circuitbreaker.CircuitBreaker[any]
	maxAnswer int64
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if !g.breaker.TryAcquirePermit() {
		if req.Body != nil {
			_ = req.Body.Close() // as a RoundTripper must; nothing was read of it
		}
		return nil, ErrCircuitOpen
	}
	resp, err := g.once(req)
	if err != nil || resp.StatusCode >= http.StatusInternalServerError {
		g.breaker.RecordFailure()
	} else {
		g.breaker.RecordSuccess()
	}
	return resp, err
}

func (g *guard) once(req *http.Request) (*http.Response, error) {
	// net/http sends a request with an Idempotency-Key again by itself when the connection breaks. Without GetBody it
	// cannot: the saga has to know that an answer was lost.
	once := req.Clone(req.Context())
	once.GetBody = nil
	resp, err := g.next.RoundTrip(once)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 && resp.StatusCode <= 399 {
		// Followed, it would send a payment to somewhere nobody configured.
		return nil, fmt.Errorf("the payment provider answered %d, which leads elsewhere", resp.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, g.maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the payment provider's answer: %w", err)
	}
	if int64(len(raw)) > g.maxAnswer {
		return nil, fmt.Errorf("the payment provider's answer is longer than %d bytes", g.maxAnswer)
	}
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	return resp, nil
}

// CloseIdleConnections is what http.Client's own calls.
func (g *guard) CloseIdleConnections() { g.next.CloseIdleConnections() }
