package apiclient

import (
	"bytes"
	"encoding/json"
	"time"
)

// NewOrder is the body of a request for an order.
type NewOrder struct {
	UserID        string    `json:"user_id"`
	Currency      string    `json:"currency"`
	Email         string    `json:"email"`
	PaymentMethod string    `json:"payment_method"`
	Items         []NewItem `json:"items"`
}

// NewItem is one line of a [NewOrder]. The price is the catalog's.
type NewItem struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// Order is an order as the api shows it. Raw is the api's document, byte for byte.
type Order struct {
	ID        string          `json:"id"`
	UserID    string          `json:"user_id"`
	Status    string          `json:"status"`
	Reason    string          `json:"reason"`
	Total     Money           `json:"total"`
	Items     []Item          `json:"items"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
	Raw       json.RawMessage `json:"-"`
}

// Money is an amount in minor units of a currency (ISO 4217).
type Money struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

// Item is one line of an [Order].
type Item struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	Quantity  int64  `json:"quantity"`
	UnitPrice int64  `json:"unit_price"`
}

// Terminal reports whether the walk of the order has ended or can only go on to a shipment or a refund.
func (o Order) Terminal() bool { return o.Status != "pending" && o.Status != "" }

// Succeeded reports whether the order was paid and goes, or went, to its user.
func (o Order) Succeeded() bool { return o.Status == "completed" || o.Status == "shipped" }

// Placed is the answer to a request for an order.
type Placed struct {
	Order    Order
	Status   int  // the HTTP status, 201 for a new order and for a replayed one
	Replayed bool // an earlier request with this key had made the order
}

// Filter chooses orders. Zero values choose all.
type Filter struct {
	UserID string
	Status string
	Limit  int
	Cursor string
}

// Page is one page of orders, the newest first. Next is the cursor of the page after it, empty on the last.
type Page struct {
	Orders []Order
	Next   string
}

// Product is one line of the catalog. UnitPrice is in minor units of Currency.
type Product struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	Currency  string `json:"currency"`
	UnitPrice int64  `json:"unit_price"`
	Available int64  `json:"available"`
}

func decodeOrder(body []byte) (Order, error) {
	o := Order{Raw: bytes.TrimSpace(body)}
	return o, decode(body, &o, "an order")
}

func decodePage(body []byte) (Page, error) {
	var doc struct {
		Orders []json.RawMessage `json:"orders"`
		Next   string            `json:"next_cursor"`
	}
	if err := decode(body, &doc, "a page of orders"); err != nil {
		return Page{}, err
	}
	page := Page{Next: doc.Next}
	for _, raw := range doc.Orders {
		o, err := decodeOrder(raw)
		if err != nil {
			return Page{}, err
		}
		page.Orders = append(page.Orders, o)
	}
	return page, nil
}

func decodeProducts(body []byte) ([]Product, error) {
	var doc struct {
		Products []Product `json:"products"`
	}
	return doc.Products, decode(body, &doc, "the catalog")
}

// Timeline is what the api knows of an order's way.
type Timeline struct {
	OrderID string  `json:"order_id"`
	UserID  string  `json:"user_id"`
	Status  string  `json:"status"`
	Entries []Entry `json:"entries"`
}

// Entry is one event of a [Timeline].
type Entry struct {
	At     time.Time `json:"at"`
	Source string    `json:"source"`
	What   string    `json:"what"`
	Detail string    `json:"detail"`
}
