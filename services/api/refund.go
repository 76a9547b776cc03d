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

type newRefund struct {
	Reason string `json:"reason" minLength:"1" maxLength:"200" example:"it arrived broken" doc:"A sentence for the user, who is told"`
}

type refundInput struct {
	ID string `path:"id" format:"uuid"`
}

type refundOutput struct {
	Status int
	Body   refundView
}

// refundView is the same for every request to refund one order.
type refundView struct {
	ID          string    `json:"id" format:"uuid" doc:"Of the order"`
	RefundID    string    `json:"refund_id" format:"uuid"`
	UserID      string    `json:"user_id"`
	Total       money     `json:"total" doc:"What is paid back"`
	Reason      string    `json:"reason"`
	RequestedBy string    `json:"requested_by" doc:"The name of the key"`
	RequestedAt time.Time `json:"requested_at"`
}

// refundOrder accepts the refund of an order that is completed or shipped. The decision is made here, under the order's row
// lock, and kept with who made it; the message only starts the work.
func (a *api) refundOrder(ctx context.Context, in *refundInput) (*refundOutput, error) {
	doc, err := body.Parse(callOf(ctx).body)
	if err != nil {
		return nil, malformed(err)
	}
	reason, _ := doc.String("reason", body.Text{MaxRunes: 200})
	if doc.End(); len(doc.Mistakes()) > 0 {
		return nil, invalid(doc.Mistakes())
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
	r, err := a.requestRefund(context.WithoutCancel(ctx), o, reason, callOf(ctx).caller.name)
	if errors.Is(err, order.ErrStatus) {
		return nil, newProblem(http.StatusConflict, kindNotRefundable, "Only an order that is completed or shipped can be refunded.")
	}
	if err != nil {
		return nil, err
	}
	if r.First {
		a.log.InfoContext(ctx, "refund accepted", "order_id", o.ID, "refund_id", r.ID, "by", r.RequestedBy)
		a.afterCommit()
	}
	return &refundOutput{Status: http.StatusAccepted, Body: refundView{
		ID: o.ID.String(), RefundID: r.ID.String(), UserID: o.UserID, Total: money{Amount: o.Total, Currency: o.Currency},
		Reason: r.Reason, RequestedBy: r.RequestedBy, RequestedAt: r.RequestedAt,
	}}, nil
}

// requestRefund notes the refund and writes the message of it.
func (a *api) requestRefund(ctx context.Context, o order.Order, reason, by string) (r order.Refund, err error) {
	err = a.repeat(ctx, "the refund", o.ID, func(ctx context.Context, tx pgx.Tx) error {
		r, err = order.RequestRefund(ctx, tx, o.ID, reason, by)
		if err != nil || !r.First {
			return err
		}
		msg, err := outbox.JSON(event.OrderRefundRequested{RefundID: r.ID, OrderID: o.ID, UserID: o.UserID, RequestedAt: r.RequestedAt})
		if err != nil {
			return err
		}
		return outbox.Write(ctx, tx, msg)
	})
	return r, err
}
