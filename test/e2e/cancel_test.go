package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/test/system"
)

// moments are where the walk of an order can be when its cancel comes: each query is true from then on.
var moments = []struct {
	name, query string
}{
	{"at once", `SELECT $1 <> ''`},
	{"once its saga was started", `SELECT EXISTS (SELECT FROM orders.saga_instances WHERE id = $1::uuid)`},
	{"once its stock is reserved", `SELECT EXISTS (SELECT FROM orders.reservations WHERE order_id = $1::uuid)`},
	{"once its payment is created", `SELECT EXISTS (SELECT FROM orders.saga_journal WHERE saga_id = $1::uuid AND name = 'charge payment' AND saved IS NOT NULL)`},
	{"once it is charged", `SELECT EXISTS (SELECT FROM orders.payments WHERE order_id = $1::uuid AND status = 'charged')`},
	{"once it is completed", `SELECT EXISTS (SELECT FROM orders.orders WHERE id = $1::uuid AND status <> 'pending')`},
}

// Whatever the moment, the answer to the cancel is the truth: 202 ends cancelled and costs nothing, 409 ends shipped.
func acceptedCancelsWin(t *testing.T, d *system.Dev) {
	type attempt struct {
		order  system.Order
		moment string
		answer int
	}
	attempts := make([]attempt, 36)
	var group errgroup.Group
	group.SetLimit(6)
	for i := range attempts {
		moment := moments[i%len(moments)]
		placed := d.Place(t, system.OrderOf(system.NewUser(), []string{"pm_ok", "pm_slow"}[i/len(moments)%2]))
		attempts[i] = attempt{order: placed, moment: moment.name}
		group.Go(func() (err error) {
			err = system.Await(t.Context(), decided, func() error { return reached(t, d, moment.query, placed.ID) })
			if err != nil {
				return fmt.Errorf("%s: %w", moment.name, err)
			}
			attempts[i].answer, err = cancelTwice(t, d, placed.ID)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	answers := map[int]int{}
	for _, a := range attempts {
		answers[a.answer]++
		status := map[int]string{http.StatusAccepted: "cancelled", http.StatusConflict: "shipped"}[a.answer]
		if status == "" {
			t.Errorf("cancel %s: %d, want 202 or 409", a.moment, a.answer)
			continue
		}
		d.AwaitStatus(t, a.order.ID, decided, status)
		outside := d.Outside(t, a.order.ID)
		charged := slices.Contains(outside, "charge 2750") && !slices.Contains(outside, "refund 2750")
		if charged != (status == "shipped") {
			t.Errorf("cancel %s was answered %d, and outside the order has %q", a.moment, a.answer, outside)
		}
	}
	t.Logf("cancels: %v", answers)
	if answers[http.StatusAccepted] == 0 || answers[http.StatusConflict] == 0 {
		t.Errorf("cancels were answered %v; want some in time and some too late, or nothing was tested", answers)
	}
}

func reached(t *testing.T, d *system.Dev, query, id string) error {
	var yes bool
	if err := d.DB.QueryRow(t.Context(), query, id).Scan(&yes); err != nil {
		return err
	}
	if !yes {
		return fmt.Errorf("order %s is not there yet", id)
	}
	return nil
}

// cancelTwice cancels an order after a moment more, and again: both must be told the same.
func cancelTwice(t *testing.T, d *system.Dev, id string) (int, error) {
	select {
	case <-time.After(rand.N(20 * time.Millisecond)): // so that the moments are not always the same ones
	case <-t.Context().Done():
		return 0, t.Context().Err()
	}
	first, err := d.Cancel(t.Context(), id)
	if err != nil {
		return 0, err
	}
	again, err := d.Cancel(t.Context(), id)
	if err == nil && again.Status != first.Status {
		err = fmt.Errorf("cancel of %s: first %d, then %d; want the same answer twice", id, first.Status, again.Status)
	}
	return first.Status, err
}
