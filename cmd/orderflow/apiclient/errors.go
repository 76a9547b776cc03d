package apiclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Problem is an answer of the api that is not a success (RFC 9457).
type Problem struct {
	Status int    `json:"status"`
	Type   string `json:"type"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	// Errors lists every mistake of the request that the api found.
	Errors []FieldError `json:"errors"`
	// RetryAfter is how long the api asks to wait before the next try, zero when it did not say.
	RetryAfter time.Duration `json:"-"`
	// RetryAfterGiven tells a Retry-After of zero from none.
	RetryAfterGiven bool `json:"-"`
}

// FieldError is one mistake in a request.
type FieldError struct {
	Pointer  string `json:"pointer"`
	Location string `json:"location"`
	Message  string `json:"message"`
	Detail   string `json:"detail"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the api answered %d", p.Status)
	switch {
	case p.Detail != "":
		b.WriteString(": " + p.Detail)
	case p.Title != "":
		b.WriteString(": " + p.Title)
	}
	for _, e := range p.Errors {
		b.WriteString("\n  " + e.String())
	}
	return b.String()
}

func (e FieldError) String() string {
	where, what := e.Pointer, e.Message
	if where == "" {
		where = e.Location
	}
	if what == "" {
		what = e.Detail
	}
	if where == "" {
		return what
	}
	return where + ": " + what
}

func newProblem(resp *http.Response, body []byte) *Problem {
	p := &Problem{}
	if err := json.Unmarshal(body, p); err != nil {
		// Not our api, or something in front of it: the status is all that can be trusted.
		p = &Problem{Detail: http.StatusText(resp.StatusCode)}
	}
	p.Status = resp.StatusCode
	if s := resp.Header.Get("Retry-After"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 {
			p.RetryAfter, p.RetryAfterGiven = time.Duration(n)*time.Second, true
		}
	}
	return p
}

// Unreachable says that no answer came. The api may or may not have done what it was asked.
type Unreachable struct {
	Base string
	Err  error
}

func (u *Unreachable) Error() string {
	err := u.Err
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without it the message repeats the method and the whole address
	}
	return fmt.Sprintf("no answer from the api at %s: %v", u.Base, err)
}

func (u *Unreachable) Unwrap() error { return u.Err }

// Unknown reports whether err leaves open if the request took effect: the same request with the same idempotency key
// is the only safe next step. Everything else is an answer.
func Unknown(err error) bool {
	var p *Problem
	if errors.As(err, &p) {
		switch p.Status {
		case http.StatusConflict:
			return p.RetryAfterGiven // the first request with this key is still at work
		case http.StatusTooManyRequests, http.StatusRequestTimeout:
			return true // refused for now: nothing happened yet, the order is still to be placed
		}
		return p.Status >= 500
	}
	var u *Unreachable
	return errors.As(err, &u) || errors.Is(err, context.DeadlineExceeded)
}
