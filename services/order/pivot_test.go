package order

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/saga"
)

// The cancel is in the order's row, and the message of it is still on its way: nothing but the row can stop the pivot.
func TestAnAcceptedCancelStopsThePivotBeforeItsMessageComes(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 10})
	w.front.creating = func(id uuid.UUID) {
		err := pgx.BeginFunc(context.WithoutCancel(t.Context()), w.pool, func(tx pgx.Tx) error {
			_, err := order.RequestCancel(context.WithoutCancel(t.Context()), tx, id)
			return err
		})
		if err != nil {
			t.Errorf("cancel order %s: %v", id, err)
		}
	}
	e := w.placed(t, "pm_ok")
	w.run(t, 1, swift())
	w.start(t, e)
	w.awaitStatus(t, e.OrderID, "cancelled")
	w.check(t, e.OrderID, "cancelled", chargedBack)
	w.judge(t)
	if got := w.text(t, `SELECT reason FROM orders.orders WHERE id = $1`, e.OrderID); got != reasonCancelled {
		t.Errorf("the order's reason is %q, want %q", got, reasonCancelled)
	}
}

// One order of a batch that may not be completed does not keep the others from it.
func TestCompleteRefusesTheOrdersOfABatchThatWereCancelled(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"pen": 10})
	cancelled, other := s.place(t, "ann", "pm_ok", item("pen", 1)), s.place(t, "bob", "pm_ok", item("pen", 1))
	var errs []error
	s.tx(t, func(tx pgx.Tx) error {
		if _, err := order.RequestCancel(t.Context(), tx, cancelled.OrderID); err != nil {
			return err
		}
		var err error
		errs, err = complete(t.Context(), tx, []*saga.Instance{instance(t, cancelled), instance(t, other)})
		return err
	})
	if len(errs) != 2 || errs[0] == nil || errs[0].Error() != saga.Rejected(reasonCancelled).Error() || errs[1] != nil {
		t.Errorf("complete = %v, want the cancelled order rejected and the other one completed", errs)
	}
	if got := s.status(t, cancelled.OrderID) + ", " + s.status(t, other.OrderID); got != "pending, completed" {
		t.Errorf("orders are %s, want pending, completed", got)
	}
	if got := s.text(t, `SELECT coalesce(string_agg(key, ' '), '') FROM orders.outbox WHERE type = 'order.completed.v1'`); got != "bob" {
		t.Errorf("order.completed tells of the orders of %q, want bob", got)
	}
}

// Who asks for a cancel after the pivot is told that it is too late, and a request that reaches the saga all the same changes
// nothing.
func TestACancelAfterThePivotChangesNothing(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 10})
	e := w.placed(t, "pm_ok")
	w.complete(t, e)
	before := w.rows(t)
	if err := w.accept(t.Context(), e.OrderID); !errors.Is(err, order.ErrStatus) {
		t.Errorf("cancel of a completed order = %v, want ErrStatus", err)
	}
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		return cancel(t.Context(), tx, inbox.Event[event.OrderCancelRequested]{
			Data: event.OrderCancelRequested{OrderID: e.OrderID, UserID: e.UserID, RequestedAt: time.Now()},
		})
	})
	if err == nil {
		t.Error("the message of a cancel that was never accepted is taken, want it refused")
	}
	w.tx(t, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, e.OrderID) })
	if diff := cmp.Diff(before, w.rows(t)); diff != "" {
		t.Errorf("a cancel after the pivot changed rows (-was +is):\n%s", diff)
	}
	w.check(t, e.OrderID, "completed", paid)
	w.judge(t)
}
