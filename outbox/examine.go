package outbox

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Levels of a [Finding].
const (
	OK   = "ok"
	Warn = "warn" // a promise is at risk, or space is
	Fail = "fail" // a promise is broken, or messages do not leave
)

// Finding is one thing that [Examine] has looked at.
type Finding struct {
	// Check names what was looked at, the same in every version: primary, identity, sequence, sequence cache, leader,
	// backlog, parked keys, order, ring, transactions, prepared transactions, commits, grants.
	Check string `json:"check"`
	// Level is [OK], [Warn] or [Fail].
	Level string `json:"level"`
	// What is the case.
	What string `json:"what"`
	// Why it matters, and what to do Next. Empty if nothing is to be done.
	Why  string `json:"why,omitempty"`
	Next string `json:"next,omitempty"`
}

// ExamineOptions say what is too long. The zero value is right for most.
type ExamineOptions struct {
	// MaxAge of the oldest unpublished message. Default 30 s.
	MaxAge time.Duration
	// MaxTransaction is how long a transaction may be open, or prepared and not ended. Default 10 minutes.
	MaxTransaction time.Duration
}

// Examine looks for everything that keeps the outbox in schema, "" for the search_path's, from doing what it promises,
// and says what to do about it: at least one [Finding] for each check. It changes nothing, and works on a standby. Run
// it as the owner of the outbox; other roles' transactions need pg_read_all_stats to be seen.
func Examine(ctx context.Context, pool *pgxpool.Pool, schema string, opts ExamineOptions) ([]Finding, error) {
	opts.MaxAge = cmp.Or(opts.MaxAge, RelayOptions{}.withDefaults().MaxAge)
	opts.MaxTransaction = cmp.Or(opts.MaxTransaction, 10*time.Minute)
	status, err := Inspect(ctx, pool, schema)
	if err != nil {
		return nil, err
	}
	e := examination{pool: pool, schema: schema, opts: opts, status: status}
	for _, check := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"primary", e.primary},
		{"identity", e.identity},
		{"sequence", e.sequence},
		{"sequence cache", e.sequenceCache},
		{"leader", e.leaders},
		{"backlog", e.backlogs},
		{"parked keys", e.parkedKeys},
		{"order", e.order},
		{"ring", e.ring},
		{"transactions", e.transactions},
		{"prepared transactions", e.prepared},
		{"commits", e.commits},
		{"grants", e.grants},
	} {
		e.check = check.name
		if err := check.do(ctx); err != nil {
			return nil, fmt.Errorf("examine %s: %w", check.name, err)
		}
	}
	return e.findings, nil
}

// examination is one run of [Examine].
type examination struct {
	pool     *pgxpool.Pool
	schema   string
	opts     ExamineOptions
	status   Status
	check    string // that is being made
	findings []Finding
}

func (e *examination) table(name string) string { return qualified(e.schema, name) }

func (e *examination) ok(format string, args ...any) {
	e.findings = append(e.findings, Finding{Check: e.check, Level: OK, What: fmt.Sprintf(format, args...)})
}

func (e *examination) found(level, what, why, next string) {
	e.findings = append(e.findings, Finding{Check: e.check, Level: level, What: what, Why: why, Next: next})
}
