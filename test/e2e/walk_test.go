package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/test/system"
)

// decided is how long an order may take. It is long because the machine may be busy with other tests; nobody waits for it
// who succeeds.
const decided = 2 * time.Minute

// TestTheWalk runs everything that needs no system of its own beside each other in one system, each with users of its own,
// and then looks for anything that must not be.
func TestTheWalk(t *testing.T) {
	t.Parallel()
	d := binary.StartDev(t, append(onKafka(t), "--ephemeral")...)
	t.Run("beside each other", func(t *testing.T) {
		for _, test := range []struct {
			name string
			run  func(*testing.T, *system.Dev)
		}{
			{"an order ends as its payment and stock allow", ordersEndAsTheyShould},
			{"the command line sees what the api does", commandLineFollowsAnOrder},
			{"one key makes one order", oneKeyMakesOneOrder},
			{"an accepted cancel wins at every moment", acceptedCancelsWin},
			{"a refund pays back once, before the shipment or after it", refundsPayBackOnce},
			{"each user's orders stay in order", usersStayInOrder},
			{"the same record again has no second effect", duplicatesHaveNoEffect},
			{"a poison message holds its own key only", poisonHoldsItsKey},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.run(t, d)
			})
		}
	})
	finish(t, d)
}

func ordersEndAsTheyShould(t *testing.T, d *system.Dev) {
	tests := []struct {
		name, method, sku, status string
		outside                   []string
	}{
		{"a paid order is shipped", "pm_ok", "sku-pen", "shipped", []string{"charge 2750", "mail confirmation", "mail shipped"}},
		{"a declined one is not", "pm_declined", "sku-pen", "payment_failed", []string{"mail failure"}},
		{"what is sold out is not charged", "pm_ok", "sku-sold-out", "rejected", []string{"mail failure"}},
		{"a lost answer is found", "pm_lost_answer", "sku-pen", "shipped", []string{"charge 2750", "mail confirmation", "mail shipped"}},
		{"a provider that never answers is called off", "pm_timeout", "sku-pen", "payment_failed", []string{"cancel 2750", "mail failure"}},
		{"one error costs nothing", "pm_error_once", "sku-pen", "shipped", []string{"charge 2750", "mail confirmation", "mail shipped"}},
		{"a slow provider is waited for", "pm_slow", "sku-pen", "shipped", []string{"charge 2750", "mail confirmation", "mail shipped"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := system.OrderOf(system.NewUser(), tt.method)
			o.Items[0].SKU = tt.sku
			placed := d.Place(t, o)
			d.AwaitStatus(t, placed.ID, decided, tt.status)
			d.AwaitOutside(t, placed.ID, tt.outside...)
		})
	}
}

func commandLineFollowsAnOrder(t *testing.T, d *system.Dev) {
	dir := d.Ready.DataDir
	out := d.Binary.MustRun(t, "orders", "create", "--random", "--wait", "--data-dir", dir, "-o", "json")
	var o system.Order
	if err := json.Unmarshal([]byte(out), &o); err != nil || !slices.Contains([]string{"completed", "shipped"}, o.Status) {
		t.Fatalf("orders create --random --wait printed %s, %v; want a completed order", out, err)
	}
	d.AwaitStatus(t, o.ID, decided, "shipped")
	system.Eventually(t, decided, "the timeline shows each hop", func() error {
		timeline := d.Binary.MustRun(t, "orders", "timeline", o.ID, "--data-dir", dir)
		for _, hop := range []string{"order.placed", "reserve stock", "charge payment", "order.completed", "shipment", "confirmation", "shipped"} {
			if !strings.Contains(timeline, hop) {
				return fmt.Errorf("no %q in\n%s", hop, timeline)
			}
		}
		return nil
	})
	if got := d.Binary.MustRun(t, "orders", "get", o.ID, "--data-dir", dir); !strings.Contains(got, "shipped") {
		t.Errorf("orders get printed %s, want shipped", got)
	}
	for _, group := range []string{"order", "email", "warehouse"} {
		if got := d.Binary.MustRun(t, "groups", "describe", group, "--data-dir", dir); !strings.Contains(got, "orders") {
			t.Errorf("groups describe %s printed %s, want its topics", group, got)
		}
	}
	if out := d.Binary.Run(t, "orders", "get", uuid.NewString(), "--data-dir", dir); out.Code != 3 {
		t.Errorf("orders get of an unknown order: exit code %d %s, want 3", out.Code, out.Stderr)
	}
}

func refundsPayBackOnce(t *testing.T, d *system.Dev) {
	dir := d.Ready.DataDir
	for _, when := range []string{"completed", "shipped"} { // the first is a race with the shipment
		o := system.OrderOf(system.NewUser(), "pm_ok")
		placed := d.Place(t, o)
		d.AwaitStatus(t, placed.ID, decided, when, "shipped")
		for range 2 {
			out := d.Binary.MustRun(t, "orders", "refund", placed.ID, "--reason", "it arrived broken", "--wait", "--data-dir", dir)
			if !strings.Contains(out, "it arrived broken") {
				t.Errorf("orders refund printed %s, want the refund", out)
			}
		}
		d.AwaitStatus(t, placed.ID, decided, "refunded")
		amount := placed.Total.Amount
		d.AwaitOutside(t, placed.ID, fmt.Sprintf("charge %d", amount), fmt.Sprintf("refund %d", amount), "mail confirmation", "mail shipped", "mail refund")
	}
	declined := d.Place(t, system.OrderOf(system.NewUser(), "pm_declined"))
	d.AwaitStatus(t, declined.ID, decided, "payment_failed")
	if out := d.Binary.Run(t, "orders", "refund", declined.ID, "--reason", "broken", "--data-dir", dir); out.Code != 4 {
		t.Errorf("orders refund of an order that was not charged: exit code %d %s, want 4", out.Code, out.Stderr)
	}
}

// F3: many clients, or one that is impatient, send one request at once.
func oneKeyMakesOneOrder(t *testing.T, d *system.Dev) {
	o := system.OrderOf(system.NewUser(), "pm_ok")
	key := uuid.NewString()
	answers := make([]system.Answer, 30)
	var group errgroup.Group
	for i := range answers {
		group.Go(func() (err error) {
			answers[i], err = d.Post(t.Context(), key, o)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, a := range answers {
		switch a.Status {
		case http.StatusCreated:
			ids[a.Header.Get("Location")] = true
		case http.StatusConflict, http.StatusServiceUnavailable: // in flight, or more than there is room for
			if a.Header.Get("Retry-After") == "" {
				t.Errorf("%d without Retry-After: %s", a.Status, a.Body)
			}
		default:
			t.Errorf("answer %d %s, want 201, or 409 or 503 to try again", a.Status, a.Body)
		}
	}
	if len(ids) != 1 {
		t.Errorf("one key made the orders %v, want one", ids)
	}
	again, err := d.Post(t.Context(), key, o)
	if err != nil || again.Status != http.StatusCreated || again.Header.Get("Idempotent-Replayed") != "true" || !ids[again.Header.Get("Location")] {
		t.Errorf("the retry: %d %v %s, %v; want the first answer again", again.Status, again.Header, again.Body, err)
	}
	o.Items[0].Quantity = 2
	if other, err := d.Post(t.Context(), key, o); err != nil || other.Status != http.StatusUnprocessableEntity {
		t.Errorf("another body under the key: %d, %v; want 422", other.Status, err)
	}
	for location := range ids {
		id := strings.TrimPrefix(location, "/v1/orders/")
		d.AwaitStatus(t, id, decided, "shipped")
		d.AwaitOutside(t, id, "charge 2750", "mail confirmation", "mail shipped")
	}
}

// Two users whose orders alternate: each one's are decided, and told of, in the order they were placed.
func usersStayInOrder(t *testing.T, d *system.Dev) {
	users := []string{system.NewUser(), system.NewUser()}
	const each = 6
	var last []system.Order
	for i := range each {
		for _, user := range users {
			placed := d.Place(t, system.OrderOf(user, []string{"pm_ok", "pm_slow", "pm_lost_answer"}[i%3]))
			if i == each-1 {
				last = append(last, placed)
			}
		}
	}
	for _, o := range last {
		d.AwaitStatus(t, o.ID, decided, "shipped")
	}
	for _, topic := range []string{"orders", "orders.completed"} {
		for user, seqs := range sequences(t, d, topic, 2*each, users...) {
			if diff := cmp.Diff([]int64{1, 2, 3, 4, 5, 6}, seqs); diff != "" {
				t.Errorf("topic %s, user %s (-want +got):\n%s", topic, user, diff)
			}
		}
	}
}
