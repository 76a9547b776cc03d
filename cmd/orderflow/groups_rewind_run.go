package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafka"
)

func (r *rewind) say(format string, args ...any) {
	r.cmd.PrintErrf("%s: "+format+"\n", append([]any{r.group}, args...)...)
}

// run pauses the group, sets its offsets and resumes it, whatever happens between.
func (r *rewind) run(ctx context.Context) error {
	before, err := kafka.GroupMembers(ctx, r.client, r.group)
	if err != nil {
		return err
	}
	reason := "rewind to " + stringFlag(r.cmd, "to")
	if r.undo != nil {
		reason = "undo of the rewind of " + r.undo.At.Format(time.RFC3339)
	}
	lease, _ := r.cmd.Flags().GetDuration("lease")
	pause, err := inbox.PauseGroup(ctx, r.pool, r.group, operator(), reason, lease)
	if errors.Is(err, inbox.ErrPaused) {
		return fail(exitConflict, "it ends by itself when nobody renews it, or with that command", "%w", err)
	}
	if err != nil {
		return ownerError(err)
	}
	r.say("paused; %d members finish what they have started, commit it and leave", len(before))
	moves, err := r.whilePaused(ctx, pause)
	// Also after an interrupt, which has ended ctx.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	resumed := pause.Resume(after)
	switch {
	case resumed == nil:
		r.say("resumed")
	case errors.Is(resumed, inbox.ErrPauseLost):
		r.say("had gone on by itself: the pause was not renewed in time")
	default:
		r.say("not resumed (%v); it goes on by itself within %v", resumed, lease)
	}
	if err != nil {
		r.sayWhatIsTrue(after, moves)
		return err
	}
	if resumed != nil && !errors.Is(resumed, inbox.ErrPauseLost) {
		return partial(1, resumed)
	}
	return r.awaitMembers(ctx, len(before))
}

// whilePaused sets the offsets once the group has no members. It returns what it was about to change, as soon as that is
// known.
func (r *rewind) whilePaused(ctx context.Context, pause *inbox.Pause) (moves []kafka.Move, err error) {
	ctx, lost := context.WithCancelCause(ctx)
	held := make(chan struct{})
	go func() {
		defer close(held)
		if err := pause.Hold(ctx); err != nil {
			lost(err)
		}
	}()
	defer func() {
		if cause := context.Cause(ctx); errors.Is(cause, inbox.ErrPauseLost) {
			err = cause
		}
		lost(nil)
		<-held
	}()
	if err := r.awaitEmpty(ctx, pause); err != nil {
		return nil, err
	}
	// The members have committed what they had finished: the plan is made again from there.
	if moves, err = r.plan(ctx); err != nil || len(moves) == 0 {
		return nil, err
	}
	path := r.undoPath()
	if err := r.writeUndoFile(path, moves); err != nil {
		return moves, err
	}
	r.say("wrote %s: `orderflow groups rewind --undo %s --yes` puts the offsets back", path, path)
	if err := kafka.SetOffsets(ctx, r.client, r.group, moves); err != nil {
		if errors.Is(err, kafka.ErrGroupHasMembers) {
			return moves, fail(exitConflict, "a member has joined that does not heed the pause", "%w", err)
		}
		return moves, err
	}
	r.say("set and read back the offsets of %d partitions", len(moves))
	return moves, nil
}

// awaitEmpty waits until the group has no members.
func (r *rewind) awaitEmpty(ctx context.Context, pause *inbox.Pause) error {
	wait, _ := r.cmd.Flags().GetDuration("wait")
	limit := time.Now().Add(wait)
	said := -1
	for {
		names, err := kafka.GroupMembers(ctx, r.client, r.group)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			r.say("has no members now")
			return nil
		}
		stopped, err := pause.Stopped(ctx)
		if err != nil {
			return err
		}
		if len(names) != said {
			said = len(names)
			r.say("%d members are left, %d consumers say that they have stopped", said, len(stopped))
		}
		if time.Now().After(limit) {
			return fail(exitConflict, "stop them; those that are no consumers of this system, or of an older version, do not heed the pause",
				"%d members have not left within %v: %s", len(names), wait, strings.Join(names, ", "))
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// awaitMembers waits a while for the members to come back. The offsets are set: that they do not is worth saying, and no
// failure of the rewind.
func (r *rewind) awaitMembers(ctx context.Context, want int) error {
	for limit := time.Now().Add(30 * time.Second); want > 0; {
		names, err := kafka.GroupMembers(ctx, r.client, r.group)
		if err != nil {
			return partial(1, err)
		}
		if len(names) > 0 {
			r.say("%d of %d members are back", len(names), want)
			return nil
		}
		if time.Now().After(limit) {
			r.say("no member has come back within 30s; `orderflow groups describe %s` shows them", r.group)
			return nil
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return nil // all is done
		}
	}
	return nil
}

// sayWhatIsTrue compares the offsets with those before and after the moves that were to be made.
func (r *rewind) sayWhatIsTrue(ctx context.Context, moves []kafka.Move) {
	if len(moves) == 0 {
		r.say("no offset was changed")
		return
	}
	now, err := kafka.Committed(ctx, r.client, r.group)
	if err != nil {
		r.say("whether offsets were changed is not known: %v", err)
		return
	}
	var changed []string
	for _, m := range moves {
		if o, _ := now.Lookup(m.Topic, m.Partition); o.At != m.From {
			changed = append(changed, fmt.Sprintf("%s/%d is at %d", m.Topic, m.Partition, o.At))
		}
	}
	if len(changed) == 0 {
		r.say("no offset was changed")
		return
	}
	r.say("%d of %d offsets are not where they were: %s", len(changed), len(moves), strings.Join(changed, ", "))
}
