package saga

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"
)

// LocalFunc is the action or the compensation of a local step. It runs inside the transaction that journals it, so its
// writes and its journal row are one. It may write rows of its own lane only, because other lanes share the transaction;
// a step that touches shared rows is a [LocalBatch].
//
// It returns nil, [Rejected] (a business no: the saga is compensated) or [Stuck]. Anything else is tried again with
// backoff; a database that is away, a deadlock and a serialization failure are tried again without counting.
type LocalFunc func(ctx context.Context, tx pgx.Tx, in *Instance) error

// LocalBatchFunc is a local step over many instances at once, for steps that touch rows which instances share: it does
// its shared writes set-based and sorted. errs[i] is the outcome of in[i], nil errs means that all succeeded: an instance
// that is [Rejected] or [Stuck] must have been left out of the writes. Any other error there, and err, fail the whole
// batch: nothing is kept, and the instances are run again one by one, so that one bad instance does not hold the others.
type LocalBatchFunc func(ctx context.Context, tx pgx.Tx, in []*Instance) (errs []error, err error)

// RemoteFunc is the action of a remote step: a call to the outside, sent under [Call.Key]. The result is kept as JSON in
// the journal and handed to the step's Record and Undo.
//
// An error that is neither [Rejected] nor [NotSent] nor [Stuck] means that the outcome is unknown: it is asked about
// with the step's Query, never guessed.
type RemoteFunc func(ctx context.Context, in *Instance, call *Call) (result any, err error)

// QueryFunc asks the other side what became of the call that was sent under [Call.Key]. An error leaves the outcome
// unknown; it is asked again with backoff.
type QueryFunc func(ctx context.Context, in *Instance, call *Call) (Answer, error)

// UndoFunc is the compensation of a remote step. It is called for an action that succeeded and for one whose outcome is
// unknown, and must leave the other side without the action's effect, now and later: cancel by id, so that a late
// success is refused, or refund what did succeed. While it cannot be sure it returns an error, and is called again
// under the same key, until [RemoteStep.KeyWindow] has passed since its first call; then the instance is stuck.
// [Rejected] says that the other side refuses: after [EngineOptions.MaxUndoAttempts] of those in a row, and after [Stuck]
// at once, it is stuck too.
type UndoFunc func(ctx context.Context, in *Instance, call *Call) error

// RecordFunc writes the result of a remote step into the caller's own tables, in the transaction that journals it.
type RecordFunc func(ctx context.Context, tx pgx.Tx, in *Instance, result json.RawMessage) error

// FailedFunc ends a saga that was compensated, in its last transaction: it says what became of the business object.
type FailedFunc func(ctx context.Context, tx pgx.Tx, in *Instance, cause Failure) error

// Step is a [LocalStep] or a [RemoteStep].
type Step interface{ spec() *step }

type step struct {
	name   string
	pivot  bool
	remote bool

	do        LocalFunc
	doBatch   LocalBatchFunc
	undo      LocalFunc
	undoBatch LocalBatchFunc

	call       RemoteFunc
	query      QueryFunc
	undoCall   UndoFunc
	record     RecordFunc
	recordUndo LocalFunc
	timeout    time.Duration
	keyWindow  time.Duration
}

func (s *step) undoable() bool { return s.undo != nil || s.undoBatch != nil || s.undoCall != nil }

// LocalStep is a step inside the saga's own database. [Local] and [LocalBatch] make one.
type LocalStep struct{ s step }

// Local is a step whose action runs in the journal's transaction, once per instance.
func Local(name string, do LocalFunc) *LocalStep {
	return &LocalStep{step{name: name, do: do}}
}

// LocalBatch is a local step whose action runs once for all instances that reached it together.
func LocalBatch(name string, do LocalBatchFunc) *LocalStep {
	return &LocalStep{step{name: name, doBatch: do}}
}

func (s *LocalStep) spec() *step { return &s.s }

// Undo sets the compensation, run once per instance.
func (s *LocalStep) Undo(undo LocalFunc) *LocalStep {
	s.s.undo = undo
	return s
}

// UndoBatch sets the compensation, run once for all instances that reached it together.
func (s *LocalStep) UndoBatch(undo LocalBatchFunc) *LocalStep {
	s.s.undoBatch = undo
	return s
}

// Pivot marks the step after which the saga only goes forward.
func (s *LocalStep) Pivot() *LocalStep {
	s.s.pivot = true
	return s
}

// RemoteStep is a call to the outside. [Remote] makes one.
type RemoteStep struct{ s step }

// Remote is a step whose action is a call to the outside. It needs a Query, and an Undo if it stands before the pivot.
func Remote(name string, do RemoteFunc) *RemoteStep {
	return &RemoteStep{step{name: name, remote: true, call: do, timeout: defaultTimeout, keyWindow: defaultKeyWindow}}
}

func (s *RemoteStep) spec() *step { return &s.s }

// Query sets how an unknown outcome is settled.
func (s *RemoteStep) Query(query QueryFunc) *RemoteStep {
	s.s.query = query
	return s
}

// Undo sets the compensation.
func (s *RemoteStep) Undo(undo UndoFunc) *RemoteStep {
	s.s.undoCall = undo
	return s
}

// Record sets what is written into the caller's tables with the journal of the action's success.
func (s *RemoteStep) Record(record RecordFunc) *RemoteStep {
	s.s.record = record
	return s
}

// RecordUndo sets what is written into the caller's tables with the journal of the compensation's success.
func (s *RemoteStep) RecordUndo(record LocalFunc) *RemoteStep {
	s.s.recordUndo = record
	return s
}

// Timeout bounds each call: the action, the query, the compensation. A lane is leased for at least twice as long, so a
// call that is cut off has ended before another engine takes the lane. Default 5 s.
func (s *RemoteStep) Timeout(d time.Duration) *RemoteStep {
	s.s.timeout = d
	return s
}

// KeyWindow is how long the other side is known to remember an idempotency key, counted from the first call under it.
// After it nothing is sent again: an outcome that is still unknown is in doubt, and a compensation that had no answer is
// stuck. Default 23 h, an hour less than Stripe promises.
func (s *RemoteStep) KeyWindow(d time.Duration) *RemoteStep {
	s.s.keyWindow = d
	return s
}

// Pivot marks the step after which the saga only goes forward. A remote pivot is not undone: while its outcome is
// unknown the saga waits.
func (s *RemoteStep) Pivot() *RemoteStep {
	s.s.pivot = true
	return s
}

// Definition is a table of steps with a name and a version. An instance runs only under the version that it was started
// with: a change of the steps is a new version, and the old one stays in the code while instances of it live.
type Definition struct {
	name     string
	version  int
	steps    []*step
	pivot    int // len(steps) if none is marked: every step can be undone
	deadline time.Duration
	onFailed FailedFunc
}

// Define makes a definition. [NewEngine] reports what is wrong with it.
func Define(name string, version int, steps ...Step) *Definition {
	d := &Definition{name: name, version: version, pivot: len(steps)}
	for i, s := range steps {
		if s == nil {
			d.steps = append(d.steps, &step{})
			continue
		}
		spec := s.spec()
		if spec.pivot && d.pivot == len(steps) {
			d.pivot = i
		}
		d.steps = append(d.steps, spec)
	}
	return d
}

// Name and Version are what [NewInstance] refers to.
func (d *Definition) Name() string { return d.name }

// Version is the version given to [Define].
func (d *Definition) Version() int { return d.version }

// Deadline sets how long an instance may take to pass its pivot before it is compensated, counted from when it heads
// its lane: waiting behind another instance does not use it up. Default: no deadline.
func (d *Definition) Deadline(limit time.Duration) *Definition {
	d.deadline = limit
	return d
}

// OnFailed sets what ends a compensated instance.
func (d *Definition) OnFailed(end FailedFunc) *Definition {
	d.onFailed = end
	return d
}
