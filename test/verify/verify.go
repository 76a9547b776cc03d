package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/test/system"
)

// Violation is something that must not be.
type Violation struct {
	Invariant string
	Detail    string
}

func (v Violation) String() string { return v.Invariant + ": " + v.Detail }

// Target is the system to check.
type Target struct {
	DB      *pgxpool.Pool  // as the owner of all schemas
	Kafka   *kgo.Client    // consumes nothing by itself
	Outside *system.Client // the sandbox's journal
	// Clients is what clients were told; nil leaves the invariants about them out.
	Clients []Request
}

// Check returns what violates the invariants. The system must be at rest: see [AtRest].
func Check(ctx context.Context, t Target) ([]Violation, error) {
	var found []Violation
	var errs []error
	for _, check := range []func(context.Context, Target) ([]Violation, error){tables, outside, topics, clients} {
		violations, err := check(ctx, t)
		found, errs = append(found, violations...), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// maxShown bounds the violations of one invariant that are listed.
const maxShown = 5

// report turns the rows that violate an invariant into violations, the first few in full.
func report(invariant, what string, rows []string) []Violation {
	var found []Violation
	for i, row := range rows {
		if i == maxShown {
			return append(found, Violation{invariant, fmt.Sprintf("%s: and %d more", what, len(rows)-maxShown)})
		}
		found = append(found, Violation{invariant, what + ": " + row})
	}
	return found
}
