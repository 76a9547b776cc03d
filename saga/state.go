package saga

import (
	"encoding/json"
	"maps"
	"time"

	"github.com/google/uuid"
)

// EntryState is where one step stands in the journal.
type EntryState string

// The states of a journal entry. Intent and Unknown both mean that the outcome is not known.
const (
	EntryIntent    EntryState = "intent"    // a call may be under way, or was when its engine died
	EntryUnknown   EntryState = "unknown"   // a call ended without saying what it did
	EntryAbsent    EntryState = "absent"    // it is certain that no call did anything
	EntrySucceeded EntryState = "succeeded" // done, or undone
	EntryRejected  EntryState = "rejected"  // a business no
	EntrySkipped   EntryState = "skipped"   // passed over by an operator
)

func (s EntryState) unknown() bool { return s == EntryIntent || s == EntryUnknown }

// entry is one row of the journal.
type entry struct {
	state     EntryState
	attempt   int
	lost      int
	keySince  time.Time // zero: no call under the key can have reached the other side
	intentAt  time.Time
	outcomeAt time.Time
	result    json.RawMessage
	saved     json.RawMessage
	answer    json.RawMessage
	err       string
	answered  bool // answer was taken in: clear it
}

type entryKey struct {
	step int
	undo bool
}

// Why an instance is stuck, as in the table's CHECK.
const (
	haltNoCode   = "no_code"
	haltAttempts = "attempts"
	haltCrashes  = "crashes"
	haltError    = "error"
)

// state is an instance with its journal: what the database holds, or a draft of what a transaction will make it.
type state struct {
	in       Instance
	def      *Definition // nil: no code for its version
	step     int
	stuckFor string
	ended    bool // OnFailed ran
	crashes  int
	journal  map[entryKey]entry

	// The rest belongs to a draft.
	dirty  map[entryKey]bool
	resend bool          // a query answered: the call may be sent again
	pause  time.Duration // before the next try
}

func (a act) remote() bool { return a == actSend || a == actAsk || a == actUndoSend }

func (s *state) draft() *state {
	d := *s
	d.journal = maps.Clone(s.journal)
	d.dirty = map[entryKey]bool{}
	d.pause = 0
	return &d
}

func (s *state) put(step int, undo bool, e entry) {
	k := entryKey{step, undo}
	if s.journal == nil {
		s.journal = map[entryKey]entry{}
	}
	s.journal[k] = e
	s.dirty[k] = true
}

func (s *state) spec() *step { return s.def.steps[s.step] }

// at is the journal's entry of what the instance does now.
func (s *state) at() entryKey { return entryKey{s.step, s.in.Failure.Kind != ""} }

// deaths is how many engines are held to have died at what the instance does now, in a transaction or in a call.
func (s *state) deaths() int { return max(s.crashes, s.journal[s.at()].lost) }

func (s *state) suspected() bool { return s.deaths() >= suspectFrom }

// countCall counts a suspect's call before it is made, so that its engine's death is its own.
func (s *state) countCall() {
	k := s.at()
	e := s.journal[k]
	if e.lost == 0 {
		return
	}
	if e.lost >= suspectFrom {
		e.lost++
	}
	s.put(k.step, k.undo, e)
}

// survived lets a suspect off whose call has come back.
func (s *state) survived() {
	k := s.at()
	if e := s.journal[k]; e.lost > suspectFrom {
		e.lost--
		s.journal[k] = e
	}
}

// moveTo makes step the current one.
func (s *state) moveTo(step int) {
	s.step, s.in.Attempt, s.in.Error = step, 0, ""
	s.pause, s.resend = 0, false
	s.in.Step = ""
	if step >= 0 && step < len(s.def.steps) {
		s.in.Step = s.def.steps[step].name
	}
}

// fail turns the instance round. The step that it stands at is looked at too: its outcome may be unknown.
func (s *state) fail(kind FailureKind, reason string) {
	s.in.Failure = Failure{Kind: kind, Step: s.in.Step, Reason: reason}
	s.in.State, s.in.ForwardOnly = Compensating, false
	s.moveTo(s.step)
}

func (s *state) halt(why, message string) {
	s.in.State, s.stuckFor, s.in.Error = StuckState, why, message
}

// resume takes a stuck instance back to where it stood.
func (s *state) resume() {
	s.stuckFor, s.in.Error, s.in.State = "", "", Running
	if s.in.Failure.Kind != "" {
		s.in.State = Compensating
	}
}

// failed counts a try that failed; after limit of them, the instance is stuck. A limit of 0 never gives up.
func (s *state) failed(err error, limit int, backoff func(attempt int) time.Duration) {
	s.in.Attempt++
	s.in.Error = clip(err.Error())
	if limit > 0 && s.in.Attempt >= limit {
		s.halt(haltAttempts, s.in.Error)
		return
	}
	s.pause = backoff(s.in.Attempt)
}

// clip keeps an error from filling the table. Errors of participants are bounded by nobody else.
func clip(s string) string {
	const limit = 1000
	if len(s) > limit {
		s = s[:limit]
	}
	return validText(s)
}

type act int

const (
	actPark     act = iota // give the lane up until somebody acts
	actWait                // give the lane up for a while
	actLocal               // run the action in the transaction
	actUndo                // run the compensation in the transaction
	actEnd                 // run OnFailed in the transaction
	actSend                // journal the intent, call the action after the commit
	actAsk                 // call the query after the commit
	actUndoSend            // journal the intent, call the compensation after the commit
	actFinish              // nothing left
)

// next decides what is to be done. It turns the instance round where a deadline or a cancel is due, and makes it in
// doubt where a call may not be sent again. It depends on nothing but the state and the time.
func (s *state) next(now time.Time) act {
	if s.def == nil {
		s.halt(haltNoCode, "no code for this version of the definition")
		return actWait
	}
	if s.in.State == StuckState {
		if s.stuckFor != haltNoCode {
			return actPark
		}
		s.resume()
	}
	if s.in.State == Waiting {
		s.begin(now)
	}
	if s.in.State == Running || s.in.State == InDoubt {
		s.turn(now)
	}
	if s.in.State == Compensating {
		return s.nextUndo()
	}
	if s.in.State.Final() {
		return actFinish
	}
	return s.nextDo(now)
}

func (s *state) begin(now time.Time) {
	s.in.State, s.in.StartedAt = Running, now
	if s.def.deadline > 0 {
		s.in.DeadlineAt = now.Add(s.def.deadline)
	}
	s.moveTo(s.step)
}

// turn compensates where a cancel or the deadline asks for it and the pivot allows it. A cancel waits for the boundary
// between two steps. The deadline does not wait for an unknown outcome: the step's compensation settles it. A pivot that may have
// happened, or that a person has passed over, allows neither.
func (s *state) turn(now time.Time) {
	if s.step > s.def.pivot || s.step >= len(s.def.steps) {
		return
	}
	here := s.journal[entryKey{s.step, false}].state
	unknown := here.unknown()
	if s.step == s.def.pivot && (unknown || here == EntrySkipped) {
		return
	}
	switch {
	case s.in.CancelRequested && !unknown && s.in.State == Running:
		s.fail(FailedCancelled, "cancel requested")
	case !s.in.DeadlineAt.IsZero() && !now.Before(s.in.DeadlineAt):
		s.fail(FailedDeadline, "deadline passed")
	}
}

func (s *state) nextDo(now time.Time) act {
	if s.step >= len(s.def.steps) {
		s.in.State = Completed
		s.moveTo(s.step)
		return actFinish
	}
	if s.journal[entryKey{s.step, false}].state == EntrySkipped {
		s.succeed()
		return s.next(now)
	}
	if s.pause > 0 {
		return actWait
	}
	spec := s.spec()
	if !spec.remote {
		return actLocal
	}
	e := s.journal[entryKey{s.step, false}]
	if s.in.State == InDoubt || e.state.unknown() && !s.resend {
		return actAsk
	}
	if !e.keySince.IsZero() && now.Sub(e.keySince) >= spec.keyWindow {
		s.in.State, s.in.Error = InDoubt, errPastWindow.Error()
		e.state = EntryUnknown
		s.put(s.step, false, e)
		return actWait
	}
	return actSend
}

func (s *state) nextUndo() act {
	for s.step >= 0 && !s.needsUndo(s.step) {
		s.moveTo(s.step - 1)
	}
	if s.pause > 0 {
		return actWait
	}
	if s.step < 0 {
		return actEnd
	}
	if s.spec().remote {
		return actUndoSend
	}
	return actUndo
}

// needsUndo: compensation counts as registered at the intent. A step that saved progress left something behind even if
// its last call is known to have done nothing. One that was passed over counts as succeeded if it can have called.
func (s *state) needsUndo(step int) bool {
	if step >= len(s.def.steps) || !s.def.steps[step].undoable() {
		return false
	}
	if u, ok := s.journal[entryKey{step, true}]; ok && (u.state == EntrySucceeded || u.state == EntrySkipped) {
		return false
	}
	e := s.journal[entryKey{step, false}]
	called := e.saved != nil || e.state == EntrySkipped && !e.keySince.IsZero()
	return e.state.unknown() || e.state == EntrySucceeded || called && (e.state == EntryAbsent || e.state == EntrySkipped)
}

// succeed moves past the current step.
func (s *state) succeed() {
	if s.in.State == InDoubt {
		s.in.State = Running
	}
	if s.step == s.def.pivot {
		s.in.ForwardOnly = true
	}
	s.moveTo(s.step + 1)
}

// reject compensates, or stops where the pivot forbids it.
func (s *state) reject(kind FailureKind, reason string) {
	if s.step > s.def.pivot {
		s.halt(haltError, clip("rejected after the pivot: "+reason))
		return
	}
	s.fail(kind, clip(reason))
}

// intend journals that a call is about to be made, and returns the entry as it was before.
func (s *state) intend(undo bool, now time.Time) entry {
	k := entryKey{s.step, undo}
	e, was := s.journal[k], s.journal[k]
	e.state, e.intentAt, e.err = EntryIntent, now, ""
	e.attempt++
	if e.keySince.IsZero() {
		e.keySince = now
	}
	s.put(s.step, undo, e)
	s.resend = false
	if !undo && s.step == s.def.pivot {
		s.in.ForwardOnly = true
	}
	return was
}

func newCall(s *state, c claim, undo bool) *Call {
	e := s.journal[entryKey{s.step, false}]
	call := &Call{
		Key:       callKey(s.in.ID, s.spec().name, undo),
		ActionKey: callKey(s.in.ID, s.spec().name, false),
		Attempt:   e.attempt,
		Lost:      e.lost,
		saga:      s.in.ID, step: s.step, name: s.spec().name, claim: c, saved: e.saved, result: e.result,
	}
	if undo {
		e = s.journal[entryKey{s.step, true}]
		call.Attempt, call.Lost = e.attempt, e.lost
	}
	return call
}

// claim is a lane held by this engine; it fences every write.
type claim struct {
	lane  string
	token uuid.UUID
	rev   int64
}
