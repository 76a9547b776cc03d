package saga

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
)

var stepName = regexp.MustCompile(`^[a-z0-9][a-z0-9 _-]{0,62}$`)

// check reports every way in which the definition could leave something half done.
func (d *Definition) check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("definition %q version %d: %w", d.name, d.version, fmt.Errorf(format, args...)))
	}
	if d.name == "" {
		bad("no name")
	}
	if d.version < 1 {
		bad("the version must be 1 or more")
	}
	if len(d.steps) == 0 {
		bad("no steps")
	}
	if d.deadline < 0 {
		bad("negative deadline")
	}
	seen := map[string]bool{}
	for i, s := range d.steps {
		if !stepName.MatchString(s.name) {
			bad("step %d: the name %q must match %s", i+1, s.name, stepName)
		}
		// The name is part of the idempotency key, with dashes for spaces.
		name := strings.ReplaceAll(s.name, " ", "-")
		if seen[name] {
			bad("step %q is there twice", s.name)
		}
		seen[name] = true
		if s.pivot && i != d.pivot {
			bad("step %q is a second pivot", s.name)
		}
		for _, reason := range s.wrong(i - d.pivot) {
			bad("step %q %s", s.name, reason)
		}
	}
	if d.deadline > 0 && d.pivot == 0 {
		bad("a deadline has nothing to undo before the pivot %q", d.steps[0].name)
	}
	return errors.Join(errs...)
}

// wrong lists what is wrong with a step that stands offset steps after the pivot.
func (s *step) wrong(offset int) (reasons []string) {
	no := func(reason string) { reasons = append(reasons, reason) }
	switch {
	case s.do == nil && s.doBatch == nil && s.call == nil:
		no("has no action")
	case s.undo != nil && s.undoBatch != nil:
		no("has both Undo and UndoBatch")
	}
	if offset == 0 && s.undoable() {
		no("is the pivot and has an Undo: it would never run")
	}
	if offset > 0 && s.undoable() {
		no("follows the pivot and has an Undo: after the pivot the saga only goes forward")
	}
	if !s.remote {
		return reasons
	}
	if s.query == nil {
		no("is remote and has no Query: an unknown outcome could only be guessed")
	}
	if offset < 0 && s.undoCall == nil {
		no("is remote, stands before the pivot and has no Undo: its effect would outlive a failure")
	}
	if s.recordUndo != nil && s.undoCall == nil {
		no("has RecordUndo but no Undo")
	}
	if s.timeout <= 0 {
		no("needs a Timeout above zero")
	}
	if s.keyWindow <= s.timeout {
		no("needs a KeyWindow longer than its Timeout")
	}
	return reasons
}

func (o EngineOptions) withDefaults() EngineOptions {
	o.BatchSize = cmp.Or(o.BatchSize, 100)
	o.Workers = cmp.Or(o.Workers, 4)
	o.MaxCalls = cmp.Or(o.MaxCalls, 64)
	o.MaxLanes = cmp.Or(o.MaxLanes, 1000)
	o.MaxAttempts = cmp.Or(o.MaxAttempts, 10)
	o.MaxUndoAttempts = cmp.Or(o.MaxUndoAttempts, 20)
	o.MaxCrashes = cmp.Or(o.MaxCrashes, 12)
	o.Lease = cmp.Or(o.Lease, defaultLease)
	o.MinPoll = cmp.Or(o.MinPoll, 2*time.Millisecond)
	o.MaxPoll = cmp.Or(o.MaxPoll, 100*time.Millisecond)
	o.RetryMin = cmp.Or(o.RetryMin, 100*time.Millisecond)
	o.RetryMax = cmp.Or(o.RetryMax, 30*time.Second)
	o.InDoubtEvery = cmp.Or(o.InDoubtEvery, 5*time.Minute)
	o.Grace = cmp.Or(o.Grace, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Meter == nil {
		o.Meter = noop.Meter{}
	}
	return o
}

func (o EngineOptions) check() error {
	for _, v := range []struct {
		name string
		n    int64
	}{
		{"BatchSize", int64(o.BatchSize)}, {"Workers", int64(o.Workers)}, {"MaxCalls", int64(o.MaxCalls)},
		{"MaxLanes", int64(o.MaxLanes)}, {"MaxAttempts", int64(o.MaxAttempts)}, {"MaxCrashes", int64(o.MaxCrashes)},
		{"MaxUndoAttempts", int64(o.MaxUndoAttempts)}, {"Lease", int64(o.Lease)}, {"Grace", int64(o.Grace)},
		{"MinPoll", int64(o.MinPoll)}, {"RetryMin", int64(o.RetryMin)}, {"InDoubtEvery", int64(o.InDoubtEvery)},
		{"MaxPoll-MinPoll", 1 + int64(o.MaxPoll-o.MinPoll)}, {"RetryMax-RetryMin", 1 + int64(o.RetryMax-o.RetryMin)},
	} {
		if v.n <= 0 {
			return fmt.Errorf("option %s must be above zero", v.name)
		}
	}
	return nil
}
