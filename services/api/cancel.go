package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/services/api/body"
)

type cancelInput struct {
	ID string `path:"id" format:"uuid"`
}

type cancelOutput struct {
	Status int
	Body   cancelView
}

// cancelView is the same for every request to cancel one order.
type cancelView struct {
	ID                string    `json:"id" format:"uuid"`
	UserID            string    `json:"user_id"`
	Status            string    `json:"status" enum:"pending" doc:"What the order was when the cancel was accepted. It will be cancelled."`
	CancelRequestedAt time.Time `json:"cancel_requested_at"`
}

// cancelOrder accepts a cancel while the order is pending. The decision is made here, under the order's row lock; the
// message only wakes whoever works on the order.
func (a *api) cancelOrder(ctx context.Context, in *cancelInput) (*cancelOutput, error) {
	if raw := callOf(ctx).body; len(raw) > 0 {
		doc, err := body.Parse(raw)
		if err != nil {
			return nil, malformed(err)
		}
		if doc.End(); len(doc.Mistakes()) > 0 {
			return nil, invalid(doc.Mistakes())
		}
	}
	o, err := a.readOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	leave, err := a.slots.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	cancelled, err := a.requestCancel(context.WithoutCancel(ctx), o)
	if errors.Is(err, order.ErrStatus) {
		return nil, newProblem(http.StatusConflict, kindDecided, "The order is decided and cannot be cancelled any more.")
	}
	if err != nil {
		return nil, err
	}
	if cancelled.First {
		a.afterCommit()
	}
	return &cancelOutput{Status: http.StatusAccepted, Body: cancelView{
		ID: o.ID.String(), UserID: o.UserID, Status: string(order.Pending), CancelRequestedAt: cancelled.RequestedAt,
	}}, nil
}

// requestCancel notes the cancel and writes the message of it.
func (a *api) requestCancel(ctx context.Context, o order.Order) (cancelled order.Cancel, err error) {
	err = a.repeat(ctx, "the cancel", o.ID, func(ctx context.Context, tx pgx.Tx) error {
		cancelled, err = order.RequestCancel(ctx, tx, o.ID)
		if err != nil || !cancelled.First {
			return err
		}
		msg, err := outbox.JSON(event.OrderCancelRequested{OrderID: o.ID, UserID: o.UserID, RequestedAt: cancelled.RequestedAt})
		if err != nil {
			return err
		}
		return outbox.Write(ctx, tx, msg)
	})
	return cancelled, err
}
