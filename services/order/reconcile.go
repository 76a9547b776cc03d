package order

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
)

// Difference is a payment that the provider and the orders do not tell the same of. Here and There say what each tells. Saga is
// where the order's saga stands: one that is not over may still settle it by itself.
type Difference struct {
	OrderID  string `json:"order_id"` // the provider's reference, where no order has it
	IntentID string `json:"intent_id"`
	What     string `json:"what"`
	Here     string `json:"here"`
	There    string `json:"there"`
	Saga     string `json:"saga,omitempty"`
}

// Reconciliation is what [Reconcile] found. Compared counts the provider's intents and the payments that it did not list.
type Reconciliation struct {
	Since       time.Time    `json:"since"`
	Until       time.Time    `json:"until"`
	Compared    int          `json:"compared"`
	Differences []Difference `json:"differences"`
}

// Reconcile compares the provider's payment intents that were created in [since, until) with the orders they are about. Then it
// asks the provider about the payments that changed here in that time, or whose refund did, and about every refund that is not
// over, however old their charges are. It changes nothing. What is under way while it looks can show as a difference: until
// should be some minutes ago.
//
// A refund that somebody makes at the provider itself, of a charge from before since, shows on neither side: it is not found.
func Reconcile(ctx context.Context, db order.DB, provider payment.Provider, since, until time.Time) (Reconciliation, error) {
	r := newReconciler(db, provider)
	r.found.Since, r.found.Until = since, until
	for after := ""; ; {
		intents, next, err := r.page(ctx, since, until, after)
		if err != nil {
			return Reconciliation{}, err
		}
		if err := r.theirs(ctx, intents); err != nil {
			return Reconciliation{}, err
		}
		if next == "" {
			break
		}
		after = next
	}
	return r.found, r.ours(ctx, since, until)
}

type reconciler struct {
	provider payment.Provider
	db       order.DB
	listed   map[string]bool      // intents that the provider has listed
	paying   map[uuid.UUID]string // by order: the intent that is charged and not refunded
	found    Reconciliation
}

func newReconciler(db order.DB, provider payment.Provider) *reconciler {
	return &reconciler{
		provider: provider, db: db, listed: map[string]bool{}, paying: map[uuid.UUID]string{},
		found: Reconciliation{Differences: []Difference{}},
	}
}

// page gives each request to the provider its own time.
func (r *reconciler) page(ctx context.Context, since, until time.Time, after string) ([]payment.Intent, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*callTimeout)
	defer cancel()
	return r.provider.List(ctx, since, until, after)
}

// account is what the orders know of one payment.
type account struct {
	OrderID  uuid.UUID
	Total    int64
	Currency string
	IntentID string
	Status   string // of table payments; "none"
	Saga     string
}

func (a account) told() string { return fmt.Sprintf("%s, %d %s", a.Status, a.Total, a.Currency) }

// told is what the provider says of an intent.
func told(in payment.Intent) string {
	status := string(in.Status)
	switch {
	case in.Refund != "":
		status = "refunded as " + in.Refund
	case in.Refunded > 0:
		status = fmt.Sprintf("%s, %d paid back", status, in.Refunded)
	}
	return fmt.Sprintf("%s, %d %s", status, in.Amount, in.Currency)
}

const selectAccounts = `
	SELECT o.id, o.total, o.currency, coalesce(p.intent_id, ''), coalesce(p.status, 'none'), coalesce(s.state, '')
	FROM orders o
	LEFT JOIN payments p ON p.order_id = o.id
	LEFT JOIN saga_instances s ON s.id = o.id`

// theirs compares a page of the provider's list.
func (r *reconciler) theirs(ctx context.Context, intents []payment.Intent) error {
	var ids []uuid.UUID
	for _, in := range intents {
		if id, err := uuid.Parse(in.Reference); err == nil {
			ids = append(ids, id)
		}
	}
	rows, _ := r.db.Query(ctx, selectAccounts+` WHERE o.id = ANY($1)`, ids) // CollectRows reports the error
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[account])
	if err != nil {
		return fmt.Errorf("read payments: %w", err)
	}
	accounts := make(map[string]account, len(list))
	for _, a := range list {
		accounts[a.OrderID.String()] = a
	}
	for _, in := range intents {
		r.found.Compared++
		r.listed[in.ID] = true
		a, known := accounts[in.Reference]
		r.compare(in, a, known)
	}
	return nil
}

func (r *reconciler) compare(in payment.Intent, a account, known bool) {
	there := told(in)
	moved := in.Status == payment.Succeeded
	if !known {
		if moved {
			r.add(in.Reference, in.ID, "money without an order", "no such order", there, "")
		}
		return
	}
	here := a.told()
	kept := moved && in.Refund == ""
	other := r.paying[a.OrderID]
	if kept {
		r.paying[a.OrderID] = in.ID
	}
	switch {
	case in.Amount != a.Total || in.Currency != a.Currency:
		r.add(in.Reference, in.ID, "another amount", here, there, a.Saga)
	case kept && other != "":
		r.add(in.Reference, in.ID, "charged twice, also as "+other, here, there, a.Saga)
	case a.IntentID != "" && a.IntentID != in.ID && !kept:
		// An intent that was left behind and keeps no money.
	case a.IntentID != "" && a.IntentID != in.ID:
		r.add(in.Reference, in.ID, "charged under another intent than "+a.IntentID, here, there, a.Saga)
	case kept && in.Refunded > 0:
		r.add(in.Reference, in.ID, "refunded in part there", here, there, a.Saga)
	case kept != (a.Status == "charged"):
		r.add(in.Reference, in.ID, map[bool]string{true: "charged there", false: "charged here"}[kept], here, there, a.Saga)
	case (moved && !kept) != (a.Status == "refunded"):
		r.add(in.Reference, in.ID, map[bool]string{true: "refunded here", false: "refunded there"}[a.Status == "refunded"], here, there, a.Saga)
	}
}

// ours looks up the payments that say something of an intent that was not listed, because it was created before the span.
func (r *reconciler) ours(ctx context.Context, since, until time.Time) error {
	rows, _ := r.db.Query(ctx, selectAccounts+`
		WHERE (p.intent_id IS NOT NULL OR p.status IN ('charged', 'refunded')) AND o.id IN (
			SELECT order_id FROM payments
			WHERE created_at >= $1 AND created_at < $2 OR updated_at >= $1 AND updated_at < $2
			UNION
			SELECT order_id FROM refunds
			WHERE requested_at < $2 AND (requested_at >= $1 OR state = 'requested') OR ended_at >= $1 AND ended_at < $2)
		ORDER BY o.id`, since, until) // CollectRows reports the error
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[account])
	if err != nil {
		return fmt.Errorf("read payments: %w", err)
	}
	for _, a := range list {
		if r.listed[a.IntentID] {
			continue
		}
		r.found.Compared++
		if _, err := r.lookUp(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// lookUp compares one payment with its intent, and returns what the provider says.
func (r *reconciler) lookUp(ctx context.Context, a account) (there string, err error) {
	here, what := a.told(), a.Status+" here"
	if a.IntentID == "" {
		there = "no intent is known"
		r.add(a.OrderID.String(), "", what, here, there, a.Saga)
		return there, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in, ok, err := r.provider.ByID(ctx, a.IntentID)
	switch {
	case err != nil:
		return "", err
	case !ok:
		there = NoSuchIntent
	case in.Reference != a.OrderID.String():
		there = "the intent is of " + in.Reference
	default:
		r.compare(in, a, true)
		return told(in), nil
	}
	r.add(a.OrderID.String(), a.IntentID, what, here, there, a.Saga)
	return there, nil
}

func (r *reconciler) add(orderID, intentID, what, here, there, saga string) {
	r.found.Differences = append(r.found.Differences, Difference{orderID, intentID, what, here, there, saga})
}
