package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

func (e *examination) leaders(context.Context) error {
	for _, r := range e.status.Relays {
		next := fmt.Sprintf("start a relay named %[1]q; if there will be none, forget the name: `orderflow outbox forget %[1]s`, outbox.Forget", r.Name)
		switch {
		case r.Leader != "":
			e.ok("relay %s is led by %s under epoch %d, its lease holds for %v", r.Name, r.Leader, r.Epoch, rounded(r.LeaseLeft))
		case r.Epoch == 0:
			e.found(Fail, fmt.Sprintf("relay %s has never had a leader", r.Name),
				"it publishes nothing, and the ring keeps everything for it", next)
		default:
			e.found(Fail, fmt.Sprintf("relay %s has no leader since epoch %d, its cursor was saved %v ago", r.Name, r.Epoch, rounded(r.CheckpointAge)),
				"nothing is published, and the ring is not given back", next)
		}
	}
	if len(e.status.Relays) == 0 {
		e.found(Fail, "there is no relay", "nothing is published, and the ring is not given back", "start a relay")
	}
	return nil
}

func (e *examination) backlogs(context.Context) error {
	for _, r := range e.status.Relays {
		what := fmt.Sprintf("relay %s: nothing waits", r.Name)
		if r.Backlog > 0 {
			what = fmt.Sprintf("relay %s: %d messages wait, the oldest for %v", r.Name, r.Backlog, rounded(r.Oldest))
		}
		switch {
		case r.Oldest <= e.opts.MaxAge:
			e.ok("%s", what)
		case r.Leader == "":
			e.found(Fail, what, "nobody leads, so nobody publishes", "start the relay")
		default:
			e.found(Fail, what, "the leader is there and does not get them to the broker, or not as fast as they are written",
				"its log says what it waits for; is the broker there, and does the topic take messages?")
		}
	}
	return nil
}

func (e *examination) parkedKeys(context.Context) error {
	for _, r := range e.status.Relays {
		if r.ParkedKeys == 0 {
			e.ok("relay %s: no key is parked", r.Name)
			continue
		}
		e.found(Warn, fmt.Sprintf("relay %s: %d keys are parked with %d messages", r.Name, r.ParkedKeys, r.ParkedMessages),
			"the broker refused a message of each for good; later messages of these keys wait behind it, all others flow",
			"`orderflow outbox parked` says why; mend it and release the key, or discard the message")
	}
	return nil
}

// violationsFor is how long a violation is worth a look: longer than a night.
const violationsFor = 24 * time.Hour

func (e *examination) order(context.Context) error {
	for _, r := range e.status.Relays {
		what := fmt.Sprintf("relay %s: %d messages were ever published behind a later one of their key", r.Name, r.Violations)
		if r.Violations > 0 {
			what += fmt.Sprintf(", the last one at %s: message %s", r.ViolationAt.UTC().Format(time.RFC3339), r.ViolationID)
		}
		if r.Violations == 0 || time.Since(r.ViolationAt) > violationsFor {
			e.ok("%s", what)
			continue
		}
		e.found(Fail, what, "somebody wrote a key while another transaction had written it and not committed yet",
			"find the writer by type and subject of the message; it must lock the key before its INSERT: no NoKeyLock without "+
				"a lock of its own, no plain INSERT")
	}
	return nil
}

// overdue is how old the first message of a leaf may be: the leaf's own time, the time until the ring comes round to it,
// and a minute for the leader to give it back in.
const overdue = (slots-1)*slotWidth + time.Minute

func (e *examination) ring(ctx context.Context) error {
	filled, bytes := 0, int64(0)
	held := false
	for _, leaf := range e.status.Ring {
		if leaf.Bytes > 0 {
			filled++
			bytes += leaf.Bytes
		}
		if leaf.Oldest <= overdue {
			continue
		}
		held = true
		reason, next, err := e.holder(ctx, leaf)
		if err != nil {
			return err
		}
		e.found(Warn, fmt.Sprintf("leaf %d is not given back, its first message is %v old: %s", leaf.Slot, rounded(leaf.Oldest), reason),
			"nothing is lost and nobody waits, but the outbox takes more and more space", next)
	}
	if !held {
		e.ok("%d of %d leaves are filled with %d MiB, writers come to the next filled one in %v",
			filled, slots, bytes>>20, rounded(e.status.Headroom))
	}
	return nil
}

// holder says what keeps leaf from being truncated, and what to do about it.
func (e *examination) holder(ctx context.Context, leaf Leaf) (reason, next string, err error) {
	if len(leaf.WaitsFor) > 0 {
		names := strings.Join(leaf.WaitsFor, ", ")
		return "it waits for relay " + names, "see what is said about the leader and the backlog of " + names, nil
	}
	led := false
	for _, r := range e.status.Relays {
		led = led || r.Leader != ""
	}
	if !led {
		return "no relay leads", "start a relay", nil
	}
	var t Transaction
	var age float64
	err = e.pool.QueryRow(ctx, `
		SELECT a.pid, coalesce(a.usename, ''), coalesce(a.state, ''),
			extract(epoch FROM clock_timestamp() - a.xact_start)::float8
		FROM pg_locks l
		JOIN pg_stat_activity a USING (pid)
		WHERE l.relation = $1::text::regclass AND l.granted
			AND a.xact_start < clock_timestamp() - interval '1 second' -- longer than a poll
		ORDER BY a.xact_start
		LIMIT 1`, leafTable(e.schema, leaf.Slot)).Scan(&t.PID, &t.User, &t.State, &age)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "the leader has not come to it yet", "look again in a minute, then into the relay's log", nil
	case err != nil:
		return "", "", fmt.Errorf("look for locks on leaf %d: %w", leaf.Slot, err)
	}
	return fmt.Sprintf("process %d of %s, %s, uses it since %v", t.PID, t.User, t.State, rounded(seconds(age))),
		fmt.Sprintf("end it: SELECT pg_terminate_backend(%d)", t.PID), nil
}

// rounded makes d readable.
func rounded(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}
