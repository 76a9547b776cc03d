package api

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/order"
)

// maxPage is the most entries of one page.
const maxPage = 100

type listInput struct {
	UserID string `query:"user_id" doc:"Whose orders. A user key sees its own only."`
	Status string `query:"status" enum:"pending,completed,shipped,rejected,payment_failed,cancelled,refunded"`
	Limit  string `query:"limit" example:"20" doc:"Orders per page, 1 to 100. Default 20."`
	Cursor string `query:"cursor" doc:"next_cursor of the page before"`
}

type listOutput struct {
	Body struct {
		Orders     []orderView `json:"orders" doc:"The newest first"`
		NextCursor string      `json:"next_cursor,omitempty" doc:"Left out on the last page"`
	}
}

func (a *api) listOrders(ctx context.Context, in *listInput) (*listOutput, error) {
	f, err := a.listFilter(ctx, in)
	if err != nil {
		return nil, err
	}
	list := listName(f)
	if in.Cursor != "" {
		if f, err = a.resume(f, list, in.Cursor); err != nil {
			return nil, err
		}
	}
	leave, err := a.slots.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	limit := f.Limit
	f.Limit++ // one more tells whether there is a next page
	orders, err := order.List(ctx, a.pool, f)
	if err != nil {
		return nil, err
	}
	out := &listOutput{}
	out.Body.Orders = []orderView{}
	if len(orders) > limit {
		orders = orders[:limit]
		out.Body.NextCursor = a.cursors.make(list, placeOf(f, orders[limit-1]))
	}
	for _, o := range orders {
		out.Body.Orders = append(out.Body.Orders, view(o))
	}
	return out, nil
}

func (a *api) listFilter(ctx context.Context, in *listInput) (order.Filter, error) {
	f := order.Filter{UserID: in.UserID, Status: order.Status(in.Status)}
	caller := callOf(ctx).caller
	if f.UserID == "" && caller.role == RoleUser {
		f.UserID = caller.userID
	}
	if f.UserID != "" && !userPattern.MatchString(f.UserID) {
		return f, badQuery("user_id", "must be 1 to 64 letters, digits and . _ : @ -")
	}
	if f.UserID != "" && !caller.mayAct(f.UserID) {
		return f, forbidden("A user key lists orders of its own user only.")
	}
	if f.Status != "" && !slices.Contains(order.Statuses(), f.Status) {
		return f, badQuery("status", "must be the status of an order, or left out")
	}
	var err error
	f.Limit, err = parseLimit(in.Limit, 20)
	return f, err
}

func parseLimit(s string, otherwise int) (int, error) {
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxPage {
		return 0, badQuery("limit", "must be from 1 to 100")
	}
	return n, nil
}

// listName tells one list from another: a cursor is good for its own only.
func listName(f order.Filter) string {
	return strings.Join([]string{"orders", f.UserID, string(f.Status)}, "\x00")
}

func placeOf(f order.Filter, last order.Order) string {
	if f.UserID != "" {
		return strconv.FormatInt(last.UserSeq, 10)
	}
	return last.ID.String()
}

func (a *api) resume(f order.Filter, list, cursor string) (order.Filter, error) {
	place, ok := a.cursors.place(list, cursor)
	if !ok {
		return f, badCursor()
	}
	var err error
	if f.UserID != "" {
		f.AfterSeq, err = strconv.ParseInt(place, 10, 64)
	} else {
		f.AfterID, err = uuid.Parse(place)
	}
	if err != nil {
		return f, badCursor()
	}
	return f, nil
}

func badCursor() *problem {
	return badQuery("cursor", "is not the next_cursor of a page of this list")
}

type productsInput struct {
	Limit  string `query:"limit" example:"100" doc:"Products per page, 1 to 100. Default 100."`
	Cursor string `query:"cursor" doc:"next_cursor of the page before"`
}

type productsOutput struct {
	Body struct {
		Products   []productView `json:"products"`
		NextCursor string        `json:"next_cursor,omitempty" doc:"Left out on the last page"`
	}
}

type productView struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	UnitPrice int64  `json:"unit_price" doc:"In minor units of the currency"`
	Currency  string `json:"currency" doc:"ISO 4217"`
	Available int64  `json:"available" doc:"What can be ordered at the moment. Not a promise: stock is reserved after an order was accepted."`
}

func (a *api) listProducts(ctx context.Context, in *productsInput) (*productsOutput, error) {
	limit, err := parseLimit(in.Limit, maxPage)
	if err != nil {
		return nil, err
	}
	after := ""
	if in.Cursor != "" {
		var ok bool
		if after, ok = a.cursors.place("products", in.Cursor); !ok {
			return nil, badCursor()
		}
	}
	leave, err := a.slots.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	products, err := order.Products(ctx, a.pool, after, limit+1)
	if err != nil {
		return nil, err
	}
	out := &productsOutput{}
	out.Body.Products = []productView{}
	if len(products) > limit {
		products = products[:limit]
		out.Body.NextCursor = a.cursors.make("products", products[limit-1].SKU)
	}
	for _, p := range products {
		out.Body.Products = append(out.Body.Products, productView(p))
	}
	return out, nil
}
