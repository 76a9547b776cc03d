package email

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// The states of an email. One in state sending may be at the provider: if nobody holds its lease any more it is in doubt.
const (
	stateQueued  = "queued"
	stateSending = "sending"
	stateSent    = "sent"
	stateFailed  = "failed"
)

// email is an email as the sender works on it.
type email struct {
	ID        uuid.UUID
	OrderID   uuid.UUID
	Kind      string
	ToAddress string
	Data      content
	MessageID string
	Provider  string // that it is sent to, or was when it came in doubt
	Attempts  int    // this one included
	CreatedAt time.Time
	InDoubt   bool
}

// outcome is what becomes of an email that was worked on.
type outcome struct {
	id       uuid.UUID
	state    string
	attempts int
	delay    time.Duration // until the email is looked at again
	err      string
}

// batch is the emails that a worker holds the lease of.
type batch struct {
	token    uuid.UUID
	until    time.Time // the end of the lease, by this process's clock and rather too early
	emails   []email
	outcomes []outcome
	settled  time.Time // when outcomes were last written
}

// errLeaseLost means that somebody else works on the rest of the batch.
var errLeaseLost = errors.New("the lease of the emails was lost")

// due reports whether there is anything to claim.
func (s *sender) due(ctx context.Context) (due bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM emails
			WHERE state IN ('queued', 'sending') AND next_attempt_at <= clock_timestamp())`).Scan(&due)
	if err != nil {
		return false, fmt.Errorf("look for emails: %w", err)
	}
	return due, nil
}

// claim takes the lease of at most size emails that are due. They are committed as sending, to the named provider, before anything is
// sent: whoever finds them so after a crash knows whom to ask. A row that is in doubt keeps the name of its provider.
func (s *sender) claim(ctx context.Context, provider string, size int) (*batch, error) {
	b := &batch{token: uuid.New(), until: time.Now().Add(s.lease), settled: time.Now()}
	ctx, cancel := detached(ctx)
	defer cancel()
	rows, _ := s.pool.Query(ctx, `
		WITH due AS (
			SELECT id, state = 'sending' AS in_doubt
			FROM emails
			WHERE state IN ('queued', 'sending') AND next_attempt_at <= clock_timestamp()
			ORDER BY next_attempt_at
			LIMIT $1
			FOR UPDATE SKIP LOCKED)
		UPDATE emails e
		SET state = 'sending', lease_token = $2, next_attempt_at = clock_timestamp() + make_interval(secs => $3),
			provider = CASE WHEN due.in_doubt THEN e.provider ELSE $4 END,
			attempts = e.attempts + CASE WHEN due.in_doubt THEN 0 ELSE 1 END,
			updated_at = clock_timestamp()
		FROM due
		WHERE e.id = due.id
		RETURNING e.id, e.order_id, e.kind, e.to_address, e.data, e.message_id, coalesce(e.provider, '') AS provider,
			e.attempts, e.created_at, due.in_doubt`, size, b.token, s.lease.Seconds(), provider) // CollectRows reports the error
	emails, err := pgx.CollectRows(rows, pgx.RowToStructByName[email])
	if err != nil {
		return nil, fmt.Errorf("claim emails: %w", err)
	}
	b.emails = emails
	slices.SortFunc(b.emails, func(x, y email) int { return x.CreatedAt.Compare(y.CreatedAt) })
	return b, nil
}

// renew sees to it that the lease of the emails from number i on lasts for another send.
func (s *sender) renew(ctx context.Context, b *batch, i int) error {
	if time.Until(b.until) > s.sendTimeout+s.grace {
		return nil
	}
	var ids []uuid.UUID
	for _, e := range b.emails[i:] {
		ids = append(ids, e.ID)
	}
	until := time.Now().Add(s.lease)
	ctx, cancel := detached(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, `
		UPDATE emails
		SET next_attempt_at = clock_timestamp() + make_interval(secs => $3), updated_at = clock_timestamp()
		WHERE id = ANY($1) AND state = 'sending' AND lease_token = $2`, ids, b.token, s.lease.Seconds())
	if err != nil {
		return fmt.Errorf("renew the lease of emails: %w", err)
	}
	if tag.RowsAffected() != int64(len(ids)) {
		return errLeaseLost
	}
	b.until = until
	return nil
}

// detached returns a context for a short statement that goes on when the sender ends. Cut off in the middle, nobody knows
// whether it took place, and every email of the batch would have to be asked about.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
}

// settle writes the outcomes.
func (s *sender) settle(ctx context.Context, b *batch) error {
	if len(b.outcomes) == 0 {
		return nil
	}
	var (
		ids             []uuid.UUID
		states, reasons []string
		delays          []float64
		attempts        []int
	)
	for _, o := range b.outcomes {
		ids, states, reasons = append(ids, o.id), append(states, o.state), append(reasons, o.err)
		delays, attempts = append(delays, o.delay.Seconds()), append(attempts, o.attempts)
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	// The token fences: an email whose lease was lost belongs to somebody who knows more by now.
	_, err := s.pool.Exec(ctx, `
		UPDATE emails e
		SET state = o.state,
			lease_token = CASE WHEN o.state = 'sending' THEN e.lease_token END,
			next_attempt_at = clock_timestamp() + make_interval(secs => o.delay),
			attempts = o.attempts,
			error = nullif(o.error, ''),
			sent_at = CASE WHEN o.state = 'sent' THEN clock_timestamp() END,
			updated_at = clock_timestamp()
		FROM unnest($2::uuid[], $3::text[], $4::float8[], $5::int[], $6::text[]) AS o (id, state, delay, attempts, error)
		WHERE e.id = o.id AND e.state = 'sending' AND e.lease_token = $1`, b.token, ids, states, delays, attempts, reasons)
	if err != nil {
		return fmt.Errorf("write what became of emails: %w", err)
	}
	b.outcomes, b.settled = nil, time.Now()
	return nil
}
