package api

import (
	"encoding/json"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/orderflow-dev/orderflow/internal/order"
)

// orderView is an order as clients see it.
type orderView struct {
	ID                string     `json:"id" format:"uuid"`
	UserID            string     `json:"user_id"`
	Status            string     `json:"status" enum:"pending,completed,shipped,rejected,payment_failed,cancelled,refunded"`
	Reason            string     `json:"reason,omitempty" doc:"Why the order ended as it did"`
	Total             money      `json:"total"`
	Email             string     `json:"email"`
	PaymentMethod     string     `json:"payment_method"`
	Items             []itemView `json:"items"`
	CancelRequestedAt *time.Time `json:"cancel_requested_at,omitempty"`
	CreatedAt         time.Time  `json:"created_at"`
	UpdatedAt         time.Time  `json:"updated_at"`
}

type money struct {
	Amount   int64  `json:"amount" doc:"In minor units, such as cents" example:"3780"`
	Currency string `json:"currency" doc:"ISO 4217" example:"EUR"`
}

type itemView struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	Quantity  int64  `json:"quantity"`
	UnitPrice int64  `json:"unit_price" doc:"In minor units of the order's currency"`
}

func view(o order.Order) orderView {
	v := orderView{
		ID: o.ID.String(), UserID: o.UserID, Status: string(o.Status), Reason: o.Reason,
		Total: money{Amount: o.Total, Currency: o.Currency}, Email: o.Email, PaymentMethod: o.PaymentMethod,
		Items: []itemView{}, CancelRequestedAt: o.CancelRequestedAt, CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt,
	}
	for _, item := range o.Items {
		v.Items = append(v.Items, itemView(item))
	}
	return v
}

// etag is strong: the version counts every change of an order, and nothing else of it ever changes.
func etag(o order.Order) string { return `"` + strconv.FormatInt(o.Version, 10) + `"` }

// document is JSON that is encoded already, described in the OpenAPI document as a T. A stored answer is sent again byte
// for byte, also by a version of the api that would encode it differently.
type document[T any] json.RawMessage

// MarshalJSON returns the document.
func (d document[T]) MarshalJSON() ([]byte, error) { return d, nil }

// Schema describes the document as a T.
func (document[T]) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[T](), true, "")
}
