package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/saga"
)

type timelineInput struct {
	ID string `path:"id" format:"uuid"`
}

type timelineOutput struct{ Body timelineView }

// timelineView is what is known here of an order's way. Mail and shipments are other services' and not in it.
type timelineView struct {
	OrderID string          `json:"order_id" format:"uuid"`
	UserID  string          `json:"user_id"`
	Status  string          `json:"status"`
	Entries []timelineEntry `json:"entries" doc:"The oldest first"`
}

type timelineEntry struct {
	At     time.Time `json:"at"`
	Source string    `json:"source" enum:"order,stock,payment,saga" doc:"Where it is recorded"`
	What   string    `json:"what" example:"charged"`
	Detail string    `json:"detail,omitempty"`
}

func (a *api) orderTimeline(ctx context.Context, in *timelineInput) (*timelineOutput, error) {
	o, err := a.readOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	leave, err := a.slots.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	entries := []timelineEntry{}
	for _, read := range []func(context.Context, order.DB, uuid.UUID) ([]timelineEntry, error){history, stockMoves, paymentSteps, refunds, sagaSteps} {
		more, err := read(ctx, a.pool, o.ID)
		if err != nil {
			return nil, err
		}
		entries = append(entries, more...)
	}
	slices.SortStableFunc(entries, func(x, y timelineEntry) int { return x.At.Compare(y.At) })
	return &timelineOutput{Body: timelineView{
		OrderID: o.ID.String(), UserID: o.UserID, Status: string(o.Status), Entries: entries,
	}}, nil
}

func history(ctx context.Context, db order.DB, id uuid.UUID) ([]timelineEntry, error) {
	changes, err := order.History(ctx, db, id)
	if err != nil {
		return nil, err
	}
	entries := make([]timelineEntry, len(changes))
	for i, c := range changes {
		what := c.Kind
		if c.Kind == "status" {
			what = string(c.To)
		}
		entries[i] = timelineEntry{At: c.At, Source: "order", What: what, Detail: c.Reason}
	}
	return entries, nil
}

func stockMoves(ctx context.Context, db order.DB, id uuid.UUID) ([]timelineEntry, error) {
	rows, _ := db.Query(ctx, `
		SELECT max(updated_at), state, count(*)
		FROM reservations
		WHERE order_id = $1
		GROUP BY state`, id) // collectEntries reports the error
	return collectEntries(rows, "stock", func(row pgx.CollectableRow, e *timelineEntry) error {
		var lines int
		err := row.Scan(&e.At, &e.What, &lines)
		e.Detail = fmt.Sprintf("%d lines", lines)
		return err
	})
}

func paymentSteps(ctx context.Context, db order.DB, id uuid.UUID) ([]timelineEntry, error) {
	rows, _ := db.Query(ctx, `
		SELECT created_at, 'intended', ''
		FROM payments
		WHERE order_id = $1
		UNION ALL
		SELECT updated_at, status, reason
		FROM payments
		WHERE order_id = $1 AND status <> 'pending'`, id) // collectEntries reports the error
	return collectEntries(rows, "payment", func(row pgx.CollectableRow, e *timelineEntry) error {
		return row.Scan(&e.At, &e.What, &e.Detail)
	})
}

func refunds(ctx context.Context, db order.DB, id uuid.UUID) ([]timelineEntry, error) {
	rows, _ := db.Query(ctx, `
		SELECT requested_at, 'requested', 'by ' || requested_by || ': ' || reason
		FROM refunds
		WHERE order_id = $1
		UNION ALL
		SELECT ended_at, state, refusal
		FROM refunds
		WHERE order_id = $1 AND ended_at IS NOT NULL`, id) // collectEntries reports the error
	return collectEntries(rows, "refund", func(row pgx.CollectableRow, e *timelineEntry) error {
		return row.Scan(&e.At, &e.What, &e.Detail)
	})
}

// sagaSteps tells what the order's saga tried, a step that waits for its outcome included. Its errors may name what is inside:
// they are for operators, to whom `orderflow orders timeline` shows them, because it reads the database itself.
func sagaSteps(ctx context.Context, db order.DB, id uuid.UUID) ([]timelineEntry, error) {
	found, err := saga.Load(ctx, db, id)
	if errors.Is(err, saga.ErrNotFound) {
		return nil, nil // the order has not arrived there yet
	}
	if err != nil {
		return nil, err
	}
	var entries []timelineEntry
	for _, step := range found.Journal {
		e := timelineEntry{At: step.OutcomeAt.UTC(), Source: "saga", What: step.Step, Detail: string(step.State)}
		if step.Undo {
			e.What = "undo " + e.What
		}
		if step.OutcomeAt.IsZero() {
			e.At = step.IntentAt.UTC()
		}
		if step.Attempt > 1 {
			e.Detail += fmt.Sprintf(", attempt %d", step.Attempt)
		}
		entries = append(entries, e)
	}
	if found.Instance.State == saga.InDoubt || found.Instance.State == saga.StuckState {
		entries = append(entries, timelineEntry{At: time.Now().UTC(), Source: "saga", What: string(found.Instance.State)})
	}
	return entries, nil
}

func collectEntries(rows pgx.Rows, source string, scan func(pgx.CollectableRow, *timelineEntry) error) ([]timelineEntry, error) {
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (timelineEntry, error) {
		e := timelineEntry{Source: source}
		err := scan(row, &e)
		e.At = e.At.UTC()
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read timeline of %s: %w", source, err)
	}
	return entries, nil
}
