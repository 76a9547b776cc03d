package order

import (
	"errors"
	"time"

	"github.com/google/uuid"
)

// Status is where an order stands.
type Status string

// The states of an order. Pending leads to one of the others; Completed may still become Shipped, and both may become
// Refunded.
const (
	Pending       Status = "pending"
	Completed     Status = "completed"      // paid, its stock reserved
	Shipped       Status = "shipped"        // handed over by the warehouse
	Rejected      Status = "rejected"       // invalid or out of stock
	PaymentFailed Status = "payment_failed" // the provider declined
	Cancelled     Status = "cancelled"      // the user asked for it in time
	Refunded      Status = "refunded"       // an operator paid the money back
)

// Statuses lists every status.
func Statuses() []Status {
	return []Status{Pending, Completed, Shipped, Rejected, PaymentFailed, Cancelled, Refunded}
}

// Terminal reports whether the order was decided: it holds for every status but Pending. A completed order is still
// shipped afterwards, but nothing it waits for can fail it any more.
func (s Status) Terminal() bool { return s != Pending }

// Last reports whether the order will not change any more by itself. Only an operator refunds what was shipped.
func (s Status) Last() bool { return s != Pending && s != Completed }

// CanBecome reports whether an order may change from s to next.
func (s Status) CanBecome(next Status) bool {
	switch s {
	case Pending:
		return next == Completed || next == Rejected || next == PaymentFailed || next == Cancelled
	case Completed:
		return next == Shipped || next == Refunded
	case Shipped:
		return next == Refunded
	default:
		return false
	}
}

// Limits of one order. The api checks the first three before it takes a connection; Postgres checks MaxQuantity again.
const (
	MaxItems    = 100
	MaxQuantity = 1000
	MaxTotal    = 100_000_000_00 // minor units: a hundred million, far below what int64 or a provider's field can hold
)

// Item is one line of an order. Name and UnitPrice are the catalog's at the time the order was placed; UnitPrice is in
// minor units of the order's currency.
type Item struct {
	SKU       string
	Name      string
	Quantity  int64
	UnitPrice int64
}

// Order is one order of one user. Total is in minor units of Currency, an ISO 4217 code. UserSeq counts the user's orders
// without a gap. Version is 1 for a new order and grows by one with every change.
type Order struct {
	ID                uuid.UUID
	UserID            string
	UserSeq           int64
	Status            Status
	Currency          string
	Total             int64
	Email             string
	PaymentMethod     string
	Items             []Item
	Reason            string // why it ended, in words for the user
	CancelRequestedAt *time.Time
	Version           int64
	CreatedAt         time.Time
	UpdatedAt         time.Time
}

// Errors that callers branch on.
var (
	ErrNotFound        = errors.New("no such order")
	ErrStatus          = errors.New("the order's status does not allow this change")
	ErrCancelRequested = errors.New("the order's cancel was accepted")
)
