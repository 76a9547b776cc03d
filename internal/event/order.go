package event

import (
	"time"

	"github.com/google/uuid"
)

// Types of the events about orders.
const (
	OrderPlacedV1          = "order.placed.v1"
	OrderCancelRequestedV1 = "order.cancel_requested.v1"
	OrderCompletedV1       = "order.completed.v1"
	OrderFailedV1          = "order.failed.v1"
	OrderRefundRequestedV1 = "order.refund_requested.v1"
	OrderRefundedV1        = "order.refunded.v1"
)

// Item is one line of an order. UnitPrice is in minor units of the order's currency.
type Item struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	Quantity  int64  `json:"quantity"`
	UnitPrice int64  `json:"unit_price"`
}

// OrderPlaced says that the api accepted an order. UserSeq counts the user's orders: 1, 2, 3 … without a gap.
// Total is in minor units of Currency (ISO 4217).
type OrderPlaced struct {
	OrderID       uuid.UUID `json:"order_id"`
	UserID        string    `json:"user_id"`
	UserSeq       int64     `json:"user_seq"`
	Currency      string    `json:"currency"`
	Total         int64     `json:"total"`
	Email         string    `json:"email"`
	PaymentMethod string    `json:"payment_method"`
	Items         []Item    `json:"items"`
	PlacedAt      time.Time `json:"placed_at"`
}

func (OrderPlaced) Topic() string     { return Orders }
func (e OrderPlaced) Key() string     { return e.UserID }
func (OrderPlaced) Type() string      { return OrderPlacedV1 }
func (e OrderPlaced) Subject() string { return e.OrderID.String() }

// OrderCancelRequested wakes the order's saga. The decision itself is the order row's cancel_requested_at.
type OrderCancelRequested struct {
	OrderID     uuid.UUID `json:"order_id"`
	UserID      string    `json:"user_id"`
	RequestedAt time.Time `json:"requested_at"`
}

func (OrderCancelRequested) Topic() string     { return Orders }
func (e OrderCancelRequested) Key() string     { return e.UserID }
func (OrderCancelRequested) Type() string      { return OrderCancelRequestedV1 }
func (e OrderCancelRequested) Subject() string { return e.OrderID.String() }

// OrderCompleted says that an order is paid and its stock reserved: it may be shipped.
type OrderCompleted struct {
	OrderID     uuid.UUID `json:"order_id"`
	UserID      string    `json:"user_id"`
	UserSeq     int64     `json:"user_seq"`
	Currency    string    `json:"currency"`
	Total       int64     `json:"total"`
	Email       string    `json:"email"`
	Items       []Item    `json:"items"`
	CompletedAt time.Time `json:"completed_at"`
}

func (OrderCompleted) Topic() string     { return OrdersCompleted }
func (e OrderCompleted) Key() string     { return e.UserID }
func (OrderCompleted) Type() string      { return OrderCompletedV1 }
func (e OrderCompleted) Subject() string { return e.OrderID.String() }

// OrderFailed says that an order ended without completing and that everything done for it is undone.
// Status is the order's final state: rejected, payment_failed or cancelled. Reason is a sentence for the user.
type OrderFailed struct {
	OrderID  uuid.UUID `json:"order_id"`
	UserID   string    `json:"user_id"`
	UserSeq  int64     `json:"user_seq"`
	Currency string    `json:"currency"`
	Total    int64     `json:"total"`
	Email    string    `json:"email"`
	Status   string    `json:"status"`
	Reason   string    `json:"reason"`
	FailedAt time.Time `json:"failed_at"`
}

func (OrderFailed) Topic() string     { return OrdersFailed }
func (e OrderFailed) Key() string     { return e.UserID }
func (OrderFailed) Type() string      { return OrderFailedV1 }
func (e OrderFailed) Subject() string { return e.OrderID.String() }

// OrderRefundRequested starts the refund of an order that was completed. The decision itself is the refund's row.
type OrderRefundRequested struct {
	RefundID    uuid.UUID `json:"refund_id"`
	OrderID     uuid.UUID `json:"order_id"`
	UserID      string    `json:"user_id"`
	RequestedAt time.Time `json:"requested_at"`
}

func (OrderRefundRequested) Topic() string     { return Orders }
func (e OrderRefundRequested) Key() string     { return e.UserID }
func (OrderRefundRequested) Type() string      { return OrderRefundRequestedV1 }
func (e OrderRefundRequested) Subject() string { return e.OrderID.String() }

// OrderRefunded says that the money of a completed order was paid back. It is in the topic of the order's completion, and so
// behind it: who has not shipped the order yet need not any more. Reason is a sentence for the user.
type OrderRefunded struct {
	OrderID    uuid.UUID `json:"order_id"`
	UserID     string    `json:"user_id"`
	UserSeq    int64     `json:"user_seq"`
	Currency   string    `json:"currency"`
	Total      int64     `json:"total"`
	Email      string    `json:"email"`
	Reason     string    `json:"reason"`
	RefundedAt time.Time `json:"refunded_at"`
}

func (OrderRefunded) Topic() string     { return OrdersCompleted }
func (e OrderRefunded) Key() string     { return e.UserID }
func (OrderRefunded) Type() string      { return OrderRefundedV1 }
func (e OrderRefunded) Subject() string { return e.OrderID.String() }
