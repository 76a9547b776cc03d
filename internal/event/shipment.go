package event

import (
	"time"

	"github.com/google/uuid"
)

// Types of the events about shipments.
const (
	ShipmentCreatedV1   = "shipment.created.v1"
	ShipmentCancelledV1 = "shipment.cancelled.v1"
)

// ShipmentCreated says that the warehouse handed an order over. It carries the user's address, because nothing is
// promised across topics: the email service may read it before it has read the order's completion.
type ShipmentCreated struct {
	ShipmentID uuid.UUID      `json:"shipment_id"`
	OrderID    uuid.UUID      `json:"order_id"`
	UserID     string         `json:"user_id"`
	Email      string         `json:"email"`
	Items      []ShipmentItem `json:"items"`
	ShippedAt  time.Time      `json:"shipped_at"`
}

// ShipmentItem is one line of a shipment.
type ShipmentItem struct {
	SKU      string `json:"sku"`
	Name     string `json:"name"`
	Quantity int64  `json:"quantity"`
}

func (ShipmentCreated) Topic() string     { return Shipments }
func (e ShipmentCreated) Key() string     { return e.UserID }
func (ShipmentCreated) Type() string      { return ShipmentCreatedV1 }
func (e ShipmentCreated) Subject() string { return e.OrderID.String() }

// ShipmentCancelled says that an order will never be handed over: it was refunded before it was. Its stock is free again.
type ShipmentCancelled struct {
	ShipmentID  uuid.UUID `json:"shipment_id"`
	OrderID     uuid.UUID `json:"order_id"`
	UserID      string    `json:"user_id"`
	CancelledAt time.Time `json:"cancelled_at"`
}

func (ShipmentCancelled) Topic() string     { return Shipments }
func (e ShipmentCancelled) Key() string     { return e.UserID }
func (ShipmentCancelled) Type() string      { return ShipmentCancelledV1 }
func (e ShipmentCancelled) Subject() string { return e.OrderID.String() }
