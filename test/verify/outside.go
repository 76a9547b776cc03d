package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// told is what one order must look like from outside.
type told struct {
	ID       string
	Status   string
	Total    int64
	Currency string
	Shipped  bool // the warehouse has handed it over
}

// outside compares the orders with what the provider and the mail catcher say they really did: I13, I14 and I17.
func outside(ctx context.Context, t Target) ([]Violation, error) {
	rows, _ := t.DB.Query(ctx, `
		SELECT o.id::text, o.status, o.total, o.currency, coalesce(s.state = 'shipped', false)
		FROM orders.orders o
		LEFT JOIN warehouse.shipments s ON s.order_id = o.id`)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[told])
	if err != nil {
		return nil, fmt.Errorf("read the orders: %w", err)
	}
	orders := make(map[string]told, len(list))
	for _, o := range list {
		orders[o.ID] = o
	}
	entries, err := t.Outside.Journal(ctx)
	if err != nil {
		return nil, err
	}
	charges, refunds := map[string][]int64{}, map[string][]int64{}
	mails := map[string]int{}
	var strange []string
	for _, e := range entries {
		o, ok := orders[e.Reference]
		switch {
		case !ok:
			strange = append(strange, fmt.Sprintf("%s for %q, which is no order", e.Kind, e.Reference))
		case e.Kind == "mail":
			mails[e.Reference+" "+e.EmailKind]++
		case e.Currency != o.Currency:
			strange = append(strange, fmt.Sprintf("%s of order %s in %s, not %s", e.Kind, o.ID, e.Currency, o.Currency))
		case e.Kind == "charge":
			charges[o.ID] = append(charges[o.ID], e.Amount)
		case e.Kind == "refund":
			refunds[o.ID] = append(refunds[o.ID], e.Amount)
		}
	}
	found := report("I14", "something happened outside that no order asked for", strange)
	found = append(found, report("I14", "the provider's journal does not match the order", wrongMoney(orders, charges, refunds))...)
	return append(found, report("I17", "mail that was not accepted exactly once", wrongMail(orders, mails))...), nil
}

func wrongMoney(orders map[string]told, charges, refunds map[string][]int64) []string {
	var wrong []string
	for _, id := range slices.Sorted(maps.Keys(orders)) {
		o := orders[id]
		paid := o.Status == "completed" || o.Status == "shipped"
		want := int64(0)
		if paid {
			want = o.Total
		}
		if len(charges[id]) > 1 || len(refunds[id]) > 1 || sum(charges[id])-sum(refunds[id]) != want {
			wrong = append(wrong, fmt.Sprintf("order %s is %s over %d, charged %v, refunded %v", id, o.Status, o.Total, charges[id], refunds[id]))
		}
	}
	return wrong
}

func wrongMail(orders map[string]told, mails map[string]int) []string {
	var wrong []string
	expected := map[string]bool{}
	for _, o := range orders {
		for _, kind := range mailsOf(o) {
			expected[o.ID+" "+kind] = true
		}
	}
	for _, mail := range slices.Sorted(maps.Keys(expected)) {
		if mails[mail] != 1 {
			wrong = append(wrong, fmt.Sprintf("order %s: %d times", mail, mails[mail]))
		}
	}
	for _, mail := range slices.Sorted(maps.Keys(mails)) {
		if !expected[mail] {
			wrong = append(wrong, fmt.Sprintf("order %s: unasked for, %d times", mail, mails[mail]))
		}
	}
	return wrong
}

// mailsOf lists the emails that an order's user must have had, as the order is at rest.
func mailsOf(o told) []string {
	switch o.Status {
	case "shipped":
		return []string{"confirmation", "shipped"}
	case "completed":
		return []string{"confirmation"}
	case "refunded":
		if o.Shipped {
			return []string{"confirmation", "shipped", "refund"}
		}
		return []string{"confirmation", "refund"}
	case "rejected", "payment_failed", "cancelled":
		return []string{"failure"}
	}
	return nil
}

func sum(amounts []int64) int64 {
	var total int64
	for _, a := range amounts {
		total += a
	}
	return total
}
