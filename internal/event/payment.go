package event

import (
	"time"

	"github.com/google/uuid"
)

// PaymentReportedV1 is the type of the events about payments.
const PaymentReportedV1 = "payment.reported.v1"

// PaymentReported says what the payment provider told of an order's payment by itself, by a webhook. It is an answer like any
// other: it may come early, twice, late, or behind one that was sent after it. Amount is in minor units of Currency
// (ISO 4217). Status is the payment's: succeeded, declined or canceled, or another one while it is on its way. RefundID is
// there if it was paid back.
type PaymentReported struct {
	OrderID    uuid.UUID `json:"order_id"`
	UserID     string    `json:"user_id"`
	Provider   string    `json:"provider"`
	IntentID   string    `json:"intent_id"`
	Status     string    `json:"status"`
	Amount     int64     `json:"amount"`
	Currency   string    `json:"currency"`
	RefundID   string    `json:"refund_id,omitempty"`
	ReportedAt time.Time `json:"reported_at"`
}

func (PaymentReported) Topic() string     { return Payments }
func (e PaymentReported) Key() string     { return e.UserID }
func (PaymentReported) Type() string      { return PaymentReportedV1 }
func (e PaymentReported) Subject() string { return e.OrderID.String() }
