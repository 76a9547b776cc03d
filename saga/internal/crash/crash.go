// Package crash lets a test stop an engine at a point of its choice, as a killed process stops: what was committed
// stays, nothing after it happens.
package crash

import (
	"context"
	"errors"
)

// ErrKilled ends an engine that was stopped at a point.
var ErrKilled = errors.New("saga: killed at a crash point")

// Kind says on which side of what the point lies.
type Kind string

// The kinds of point.
const (
	BeforeCommit Kind = "before commit"
	AfterCommit  Kind = "after commit"
	BeforeCall   Kind = "before"
	AfterCall    Kind = "after"
)

// Func is told of each point as it is reached, from several goroutines; true kills.
type Func func(kind Kind, what string) bool

type key struct{}

// With returns a context whose engine reports its points to f.
func With(ctx context.Context, f Func) context.Context { return context.WithValue(ctx, key{}, f) }

// At reports a point. It returns ErrKilled if the engine dies there.
func At(ctx context.Context, kind Kind, what string) error {
	f, ok := ctx.Value(key{}).(Func)
	if ok && f(kind, what) {
		return ErrKilled
	}
	return nil
}
