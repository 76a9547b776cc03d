package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/orderflow-dev/orderflow/services/api/body"
)

// problem is an answer that is not a success: problem details by RFC 9457. It never repeats what the client sent, and never
// says what went wrong inside.
type problem struct {
	Type   string    `json:"type" doc:"Names the kind of problem: urn:orderflow:problem:<kind>"`
	Title  string    `json:"title" doc:"The status in words"`
	Status int       `json:"status"`
	Detail string    `json:"detail,omitempty" doc:"What to do about it"`
	Errors []mistake `json:"errors,omitempty" doc:"Every mistake that was found in the request"`

	retryAfter time.Duration
	header     http.Header
}

// mistake is one mistake in a request: Pointer says where in the body (a JSON Pointer), Location where else.
type mistake struct {
	Pointer  string `json:"pointer,omitempty" example:"/items/0/quantity"`
	Location string `json:"location,omitempty" example:"query.limit"`
	Detail   string `json:"detail"`
}

// Kinds of problem that a client's program may want to tell apart.
const (
	kindOutcomeUnknown = "outcome-unknown"
	kindInFlight       = "request-in-flight"
	kindKeyReused      = "idempotency-key-reused"
	kindInvalid        = "invalid-request"
	kindDecided        = "order-already-decided"
	kindNotRefundable  = "order-not-refundable"
	kindOverloaded     = "overloaded"
	kindUnavailable    = "unavailable"
	kindRateLimited    = "rate-limited"
)

func newProblem(status int, kind, detail string) *problem {
	if kind == "" {
		kind = "status-" + strconv.Itoa(status)
	}
	return &problem{Type: "urn:orderflow:problem:" + kind, Title: http.StatusText(status), Status: status, Detail: detail}
}

func (p *problem) retry(after time.Duration) *problem {
	p.retryAfter = after
	return p
}

func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

// at adds a mistake outside of the body, such as "query.limit".
func (p *problem) at(location, detail string) *problem {
	p.Errors = append(p.Errors, mistake{Location: location, Detail: detail})
	return p
}

// Error, GetStatus, GetHeaders and ContentType are what huma asks an error for.
func (p *problem) Error() string { return fmt.Sprintf("%d %s: %s", p.Status, p.Type, p.Detail) }

func (p *problem) GetStatus() int { return p.Status }

func (p *problem) GetHeaders() http.Header {
	h := p.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set("Cache-Control", "no-store")
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	return h
}

func (*problem) ContentType(string) string { return "application/problem+json" }

// write answers outside of huma's handlers.
func (p *problem) write(w http.ResponseWriter) {
	for name, values := range p.GetHeaders() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	encoded, err := json.Marshal(p)
	if err != nil {
		encoded = []byte(`{}`) // a struct of strings and ints always encodes
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(encoded, '\n')) // a client that has gone away needs no answer
}

func notFound() *problem { return newProblem(http.StatusNotFound, "", "There is nothing here.") }

func unauthorized() *problem {
	return newProblem(http.StatusUnauthorized, "", "Send a valid API key in the header: Authorization: Bearer <key>").
		with("WWW-Authenticate", `Bearer realm="orderflow"`)
}

func forbidden(detail string) *problem { return newProblem(http.StatusForbidden, "", detail) }

func unavailable() *problem {
	return newProblem(http.StatusServiceUnavailable, kindUnavailable, "The service is not able to work at the moment. Nothing was done; try again.").
		retry(time.Second)
}

func internalError() *problem {
	return newProblem(http.StatusInternalServerError, "", "Something went wrong here; it is logged. Sent again with the same Idempotency-Key, a request is never done twice.")
}

// malformed answers a body that is not one JSON object.
func malformed(err error) *problem {
	detail := body.ErrMalformed.Error()
	for _, known := range []error{body.ErrEmpty, body.ErrTrailing, body.ErrNotObject, body.ErrEncoding, body.ErrDeep} {
		if errors.Is(err, known) {
			detail = known.Error()
		}
	}
	return newProblem(http.StatusBadRequest, "", detail)
}

// invalid answers a request whose fields are wrong.
func invalid(mistakes []body.Mistake) *problem {
	p := newProblem(http.StatusUnprocessableEntity, kindInvalid, "The request has mistakes; each is listed with its place.")
	for _, m := range mistakes {
		p.Errors = append(p.Errors, mistake{Pointer: m.Pointer, Detail: m.Detail})
	}
	return p
}
