package saga

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// State is where an instance stands.
type State string

// The states of an instance. Completed and Compensated are final.
const (
	Waiting      State = "waiting"      // behind another instance of its lane, or not picked up yet
	Running      State = "running"      // going forward
	Compensating State = "compensating" // being undone
	InDoubt      State = "in_doubt"     // a call's outcome is unknown and may not be asked for by sending again
	StuckState   State = "stuck"        // needs a person
	Completed    State = "completed"    // every step succeeded
	Compensated  State = "compensated"  // failed, and undone
)

// Final reports whether nothing follows the state.
func (s State) Final() bool { return s == Completed || s == Compensated }

// FailureKind says why an instance was compensated.
type FailureKind string

// The kinds of failure.
const (
	FailedRejected  FailureKind = "rejected"  // a step returned [Rejected]
	FailedCancelled FailureKind = "cancelled" // [RequestCancel]
	FailedDeadline  FailureKind = "deadline"  // the definition's deadline passed before the pivot
	FailedOperator  FailureKind = "operator"  // [Compensate], or [Resolve] with "it did not happen"
)

// Failure is why an instance was compensated. The zero value means that it was not.
type Failure struct {
	Kind   FailureKind `json:"kind"`
	Step   string      `json:"step"`
	Reason string      `json:"reason"`
}

// Instance is one saga. Steps read it; only the engine changes it.
type Instance struct {
	ID         uuid.UUID
	Lane       string
	Definition string
	Version    int
	Data       json.RawMessage

	State State
	// Step is the step being done or undone; empty when there is none left.
	Step string
	// Attempt counts the tries of Step that failed, not those that met a database that was away.
	Attempt int
	// Failure is set from the moment compensation begins.
	Failure Failure
	// Error is the last error, or why the instance is stuck.
	Error string
	// Rev grows with every change. Operator functions refuse to act on another revision than the one that was looked at.
	Rev int64

	CancelRequested bool
	ForwardOnly     bool // the pivot was passed, or a remote pivot was sent
	CreatedAt       time.Time
	StartedAt       time.Time // when it headed its lane; zero while it waits
	DeadlineAt      time.Time // zero without a deadline
	UpdatedAt       time.Time // when it came to its State or its Step
	FinishedAt      time.Time
}

// Decode reads the data that the instance was started with into v.
func (in *Instance) Decode(v any) error {
	if err := json.Unmarshal(in.Data, v); err != nil {
		return Stuck(fmt.Errorf("decode data of %s: %w", in.Definition, err))
	}
	return nil
}
