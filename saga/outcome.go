package saga

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Errors that callers branch on.
var (
	// ErrFenced means that another engine, or an operator, has taken the lane since: whatever the caller holds is stale.
	ErrFenced = errors.New("saga: lane taken by another engine")
	// ErrNotFound means that there is no such saga, or no such step in it.
	ErrNotFound = errors.New("saga: not found")
	// ErrConflict means that the saga is no longer as the operator saw it, or not in a state that allows the request.
	ErrConflict = errors.New("saga: conflict")
)

type rejectedError struct{ reason string }

func (e *rejectedError) Error() string { return e.reason }

// Rejected is a business no, with its reason: the step did not happen and never will, so the saga is compensated. The
// reason is stored and reaches OnFailed as [Failure.Reason].
func Rejected(reason string) error { return &rejectedError{reason} }

type notSentError struct{ err error }

func (e *notSentError) Error() string { return e.err.Error() }
func (e *notSentError) Unwrap() error { return e.err }

// NotSent marks an error of a remote action as certain not to have reached the other side (no connection, refused by a
// circuit breaker, a clean 503). The call is sent again without being asked about.
func NotSent(err error) error { return &notSentError{err} }

type stuckError struct{ err error }

func (e *stuckError) Error() string { return e.err.Error() }
func (e *stuckError) Unwrap() error { return e.err }

// Stuck marks an error that no retry and no compensation can answer, such as one idempotency key with two amounts. The
// instance stops, visibly, until a person acts.
func Stuck(err error) error { return &stuckError{err} }

type found string

const (
	foundSucceeded    found = "succeeded"
	foundRejected     found = "rejected"
	foundNeverExisted found = "never_existed"
	foundNotYet       found = "not_yet"
)

// Answer is what a query found out about a call. The zero value is [NotYet].
type Answer struct {
	found  found
	result json.RawMessage
	reason string
	err    error // the result did not encode
}

// FoundSucceeded says that the call did its work. The result replaces the one that the call would have returned.
func FoundSucceeded(result any) Answer {
	raw, err := encode(result)
	return Answer{found: foundSucceeded, result: raw, err: err}
}

// FoundRejected says that the call was refused, which compensates the saga.
func FoundRejected(reason string) Answer { return Answer{found: foundRejected, reason: reason} }

// NeverExisted says for certain that the call did nothing and cannot do anything any more unless it is sent again.
func NeverExisted() Answer { return Answer{found: foundNeverExisted} }

// NotYet says that nothing is known of the call, or that it is still under way. It may still turn up.
func NotYet() Answer { return Answer{found: foundNotYet} }

func encode(v any) (json.RawMessage, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		return v, nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return raw, nil
}
