package saga

import (
	"encoding/json"
	"errors"
	"time"
)

// event is what a call, or somebody from outside, said about a step. It is taken in by the next transaction of its
// instance.
type event struct {
	step    int
	undo    bool
	attempt int
	asked   bool // it answers a query
	answer  Answer
	err     error
	saved   json.RawMessage

	person   bool  // the answer is an operator's
	from     entry // the entry before the intent, which NotSent goes back to
	duration time.Duration
}

// fits reports whether the event is about what the state still waits for.
func (ev *event) fits(s *state) bool {
	e, ok := s.journal[entryKey{ev.step, ev.undo}]
	if !ok || s.def == nil || s.step != ev.step || s.in.State.Final() {
		return false
	}
	if ev.undo {
		return s.in.Failure.Kind != "" && e.state.unknown() && e.attempt == ev.attempt
	}
	return s.in.Failure.Kind == "" && e.state.unknown() && (ev.person || e.attempt == ev.attempt)
}

// effect is what has to be run in the transaction before the event counts.
type effect int

const (
	effectNone effect = iota
	effectRecord
	effectRecordUndo
)

// effect says whether the event ends the step well, and so what the definition wants recorded with it.
func (ev *event) effect() effect {
	switch {
	case ev.undo && ev.err == nil:
		return effectRecordUndo
	case !ev.undo && ev.err == nil && ev.answer.err == nil && ev.answer.found == foundSucceeded:
		return effectRecord
	}
	return effectNone
}

// take brings the event into the draft.
func (s *state) take(ev *event, now time.Time, opts EngineOptions) {
	e := s.journal[entryKey{ev.step, ev.undo}]
	if ev.undo {
		s.takeUndo(ev, e, now, opts)
		return
	}
	e.saved = ev.saved
	e.answered = e.answer != nil
	e.answer = nil
	if s.in.State == StuckState {
		s.resume()
	}
	err := ev.err
	if err == nil {
		err = ev.answer.err
	}
	var rejected *rejectedError
	var notSent *notSentError
	var stuck *stuckError
	switch {
	case err == nil:
		s.takeAnswer(ev, e, now, opts)
		return
	case errors.As(err, &stuck):
		e.state, e.err = EntryUnknown, clip(err.Error())
		s.halt(haltError, e.err)
	case errors.As(err, &rejected) && !ev.asked:
		s.rejectEntry(ev, e, rejected.reason, now)
		return
	case errors.As(err, &notSent) && !ev.asked:
		e.state, e.keySince, e.err = EntryAbsent, ev.from.keySince, clip(err.Error())
		if ev.from.state.unknown() {
			e.state = EntryUnknown
		}
		s.notPassed(ev.step, e)
		s.failed(err, 0, opts.backoff)
	default:
		e.state, e.err = EntryUnknown, clip(err.Error())
		s.unsettled(e, ev.step, now, err, opts)
	}
	s.put(ev.step, false, e)
}

func (s *state) takeAnswer(ev *event, e entry, now time.Time, opts EngineOptions) {
	past := !e.keySince.IsZero() && now.Sub(e.keySince) >= s.def.steps[ev.step].keyWindow
	switch ev.answer.found {
	case foundSucceeded:
		e.state, e.outcomeAt, e.result, e.err = EntrySucceeded, now, ev.answer.result, ""
		s.put(ev.step, false, e)
		s.succeed()
		return
	case foundRejected:
		s.rejectEntry(ev, e, ev.answer.reason, now)
		return
	case foundNeverExisted:
		if ev.person {
			s.personSaysNo(ev, e, now)
			return
		}
		if past {
			e.state = EntryUnknown
			s.unsettled(e, ev.step, now, errPastWindow, opts)
			break
		}
		e.state = EntryAbsent
		s.notPassed(ev.step, e)
		s.resend = true
	default:
		e.state = EntryUnknown
		if past {
			s.unsettled(e, ev.step, now, errPastWindow, opts)
			break
		}
		s.resend = true
	}
	s.put(ev.step, false, e)
}

// notPassed takes back that a remote pivot may have happened.
func (s *state) notPassed(step int, e entry) {
	if step == s.def.pivot && e.state == EntryAbsent {
		s.in.ForwardOnly = false
	}
}

var errPastWindow = errors.New("the outcome is unknown and the other side may have forgotten the key")

// unsettled waits and asks again; past the key window it says so.
func (s *state) unsettled(e entry, step int, now time.Time, err error, opts EngineOptions) {
	s.failed(err, 0, opts.backoff)
	if !e.keySince.IsZero() && now.Sub(e.keySince) >= s.def.steps[step].keyWindow {
		s.in.State, s.in.Error = InDoubt, clip(err.Error())
	}
}

func (s *state) rejectEntry(ev *event, e entry, reason string, now time.Time) {
	e.state, e.outcomeAt, e.err = EntryRejected, now, clip(reason)
	s.put(ev.step, false, e)
	kind := FailedRejected
	if ev.person {
		kind = FailedOperator
	}
	s.reject(kind, reason)
}

// personSaysNo: it did not happen. Before the pivot that fails the saga; after it the call is sent again, on that word
// also past the key window. A step that saved progress stays unknown, so that it is undone: that it has not happened says
// nothing of a call that is still on its way.
func (s *state) personSaysNo(ev *event, e entry, now time.Time) {
	if e.saved != nil && s.def.steps[ev.step].undoable() {
		e.state = EntryUnknown
		s.put(ev.step, false, e)
		s.reject(FailedOperator, ev.answer.reason)
		return
	}
	if ev.step <= s.def.pivot {
		s.rejectEntry(ev, e, ev.answer.reason, now)
		return
	}
	e.state, e.keySince = EntryAbsent, time.Time{}
	s.put(ev.step, false, e)
	s.in.State = Running
	s.resend = true
}

func (s *state) takeUndo(ev *event, e entry, now time.Time, opts EngineOptions) {
	if a := s.journal[entryKey{ev.step, false}]; ev.saved != nil {
		a.saved = ev.saved // Save committed it already
		s.journal[entryKey{ev.step, false}] = a
	}
	if ev.err == nil {
		e.state, e.outcomeAt, e.err = EntrySucceeded, now, ""
		s.put(ev.step, true, e)
		s.moveTo(ev.step - 1)
		return
	}
	e.state, e.err = EntryUnknown, clip(ev.err.Error())
	var stuck *stuckError
	var rejected *rejectedError
	switch {
	case errors.As(ev.err, &stuck):
		s.halt(haltError, e.err)
	case errors.As(ev.err, &rejected):
		if ev.from.state != EntryRejected {
			s.in.Attempt = 0 // only refusals in a row count: the tries before them had no answer
		}
		e.state = EntryRejected
		s.failed(ev.err, opts.MaxUndoAttempts, opts.backoff)
	default:
		// Silence says nothing about this instance: while the other side is away, every compensation gets it.
		s.failed(ev.err, 0, opts.backoff)
		if now.Sub(e.keySince) >= s.def.steps[ev.step].keyWindow {
			s.halt(haltAttempts, e.err)
		}
	}
	s.put(ev.step, true, e)
}
