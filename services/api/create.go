package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/mail"
	"regexp"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/services/api/body"
)

// newOrder is what a client asks for. Prices are the catalog's; a client that sends one is told so.
type newOrder struct {
	UserID        string    `json:"user_id" pattern:"^[A-Za-z0-9._:@-]{1,64}$" example:"user-7"`
	Currency      string    `json:"currency" pattern:"^[A-Z]{3}$" example:"EUR" doc:"ISO 4217"`
	Email         string    `json:"email" format:"email" maxLength:"254" example:"ada@example.com"`
	PaymentMethod string    `json:"payment_method" minLength:"1" maxLength:"100" example:"pm_ok"`
	Items         []newItem `json:"items" minItems:"1" maxItems:"100"`
}

type newItem struct {
	SKU      string `json:"sku" minLength:"1" maxLength:"64" example:"sku-mug"`
	Quantity int64  `json:"quantity" minimum:"1" maximum:"1000" example:"2"`
}

type createInput struct {
	IdempotencyKey string `header:"Idempotency-Key" required:"true" doc:"1 to 255 visible ASCII characters, new for every new order. The same request with the same key gets the same answer for 7 days."`
}

type createOutput struct {
	Status   int
	Location string `header:"Location" doc:"Where the order is"`
	ETag     string `header:"ETag"`
	Replayed string `header:"Idempotent-Replayed" doc:"true, if this is the stored answer of an earlier request"`
	Body     document[orderView]
}

var (
	userPattern     = regexp.MustCompile(`^[A-Za-z0-9._:@-]{1,64}$`)
	currencyPattern = regexp.MustCompile(`^[A-Z]{3}$`)
	keyPattern      = regexp.MustCompile(`^[!-~]{1,255}$`)
)

func (a *api) createOrder(ctx context.Context, in *createInput) (*createOutput, error) {
	doc, err := body.Parse(callOf(ctx).body)
	if err != nil {
		return nil, malformed(err)
	}
	wanted, lines := readOrder(doc)
	if wanted.UserID != "" && !callOf(ctx).caller.mayAct(wanted.UserID) {
		return nil, forbidden("A user key places orders of its own user only.")
	}
	if len(doc.Mistakes()) > 0 {
		return nil, a.allMistakes(ctx, doc, wanted, lines)
	}
	canonical, err := json.Marshal(wanted)
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("mint order id: %w", err)
	}
	req := request{userID: wanted.UserID, operation: "create-order", key: in.IdempotencyKey, hash: sha256.Sum256(canonical)}
	got, replayed, err := a.keeper.once(ctx, req, place(id, wanted, doc, lines))
	if err != nil {
		return nil, err
	}
	out := &createOutput{Status: got.status, Location: got.location, ETag: got.etag, Body: got.body}
	if replayed {
		out.Replayed = "true"
		a.metrics.replayed.Add(ctx, 1)
		return out, nil
	}
	a.metrics.placed.Add(ctx, 1)
	a.afterCommit()
	return out, nil
}

// readOrder reads the request's fields; what is wrong with them is noted in doc. lines are the objects of o.Items.
func readOrder(doc *body.Object) (o newOrder, lines []*body.Object) {
	o.UserID, _ = doc.String("user_id", body.Text{MaxRunes: 64, Pattern: userPattern, Want: "letters, digits and . _ : @ -"})
	o.Currency, _ = doc.String("currency", body.Text{MaxRunes: 3, Pattern: currencyPattern, Want: "an ISO 4217 code, such as EUR"})
	email, ok := doc.String("email", body.Text{MaxRunes: 254})
	if ok && !deliverable(email) {
		doc.Note("email", "must be an email address")
	} else {
		o.Email = email
	}
	// Whatever the provider may call its methods: this is text, and it is the provider who knows.
	o.PaymentMethod, _ = doc.String("payment_method", body.Text{MaxRunes: 100, Lines: true})
	seen := map[string]bool{}
	lines = doc.Objects("items", 1, order.MaxItems)
	for _, line := range lines {
		var item newItem
		item.SKU, ok = line.String("sku", body.Text{MaxRunes: 64})
		if ok && seen[item.SKU] {
			line.Note("sku", "is in the order twice; add up the quantities")
		}
		seen[item.SKU] = true
		item.Quantity, _ = line.Int("quantity", 1, order.MaxQuantity)
		line.End()
		o.Items = append(o.Items, item)
	}
	doc.End()
	return o, lines
}

// deliverable reports whether s is one plain address. Letters outside of ASCII need a mail server that speaks SMTPUTF8,
// which cannot be known here.
func deliverable(s string) bool {
	for _, r := range s {
		if r > 0x7E {
			return false
		}
	}
	address, err := mail.ParseAddress(s)
	return err == nil && address.Address == s
}

// allMistakes adds what the catalog says to the mistakes of the request itself, so that one answer lists them all.
func (a *api) allMistakes(ctx context.Context, doc *body.Object, wanted newOrder, lines []*body.Object) error {
	if len(wanted.Items) == 0 {
		return invalid(doc.Mistakes())
	}
	leave, err := a.slots.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	products, err := order.Prices(ctx, a.pool, skus(wanted))
	if err != nil {
		return err
	}
	price(wanted, products, doc, lines)
	return invalid(doc.Mistakes())
}

// place makes the order and the message about it.
func place(id uuid.UUID, wanted newOrder, doc *body.Object, lines []*body.Object) work {
	var products map[string]order.Product
	var o order.Order
	return work{
		ahead: func(batch *pgx.Batch) {
			products = map[string]order.Product{} // a second run must not see the first one's
			order.QueuePrices(batch, skus(wanted), products)
		},
		decide: func(batch *pgx.Batch) (answer, error) {
			before := len(doc.Mistakes())
			items, total := price(wanted, products, doc, lines)
			if mistakes := doc.Mistakes(); len(mistakes) > before {
				return answer{}, invalid(mistakes[before:]) // a second run finds the same again
			}
			o = order.Order{
				ID: id, UserID: wanted.UserID, Currency: wanted.Currency, Total: total,
				Email: wanted.Email, PaymentMethod: wanted.PaymentMethod, Items: items,
				// Postgres keeps microseconds; what is answered now is what will be read later.
				CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
			}
			order.QueueInsert(batch, &o)
			encoded, err := json.Marshal(view(o))
			if err != nil {
				return answer{}, fmt.Errorf("encode order: %w", err)
			}
			return answer{status: http.StatusCreated, location: "/v1/orders/" + id.String(), etag: etag(o), body: encoded}, nil
		},
		finish: func(ctx context.Context, tx pgx.Tx) error {
			msg, err := outbox.JSON(placed(o))
			if err != nil {
				return err
			}
			return outbox.Write(ctx, tx, msg)
		},
	}
}

func skus(wanted newOrder) []string {
	list := make([]string, len(wanted.Items))
	for i, item := range wanted.Items {
		list[i] = item.SKU
	}
	return list
}

// price looks up every line and adds up the total; what the catalog does not allow is noted in doc.
func price(wanted newOrder, products map[string]order.Product, doc *body.Object, lines []*body.Object) (items []order.Item, total int64) {
	elsewhere, over := 0, false
	for i, item := range wanted.Items {
		p, ok := products[item.SKU]
		switch {
		case item.SKU == "": // noted before
		case !ok:
			lines[i].Note("sku", "is not in the catalog")
		case p.Currency != wanted.Currency && wanted.Currency != "":
			lines[i].Note("sku", "is not sold in the order's currency")
			elsewhere++
		}
		if item.Quantity > 0 {
			over = over || p.UnitPrice > (math.MaxInt64-total)/item.Quantity
			if !over {
				total += p.UnitPrice * item.Quantity
			}
		}
		items = append(items, order.Item{SKU: item.SKU, Name: p.Name, Quantity: item.Quantity, UnitPrice: p.UnitPrice})
	}
	if elsewhere > 0 && elsewhere == len(wanted.Items) {
		doc.Note("currency", "is not the currency of any product in the order")
	}
	if over || total > order.MaxTotal {
		doc.Note("items", "cost more together than one order may")
	}
	return items, total
}

func placed(o order.Order) event.OrderPlaced {
	e := event.OrderPlaced{
		OrderID: o.ID, UserID: o.UserID, UserSeq: o.UserSeq, Currency: o.Currency, Total: o.Total,
		Email: o.Email, PaymentMethod: o.PaymentMethod, PlacedAt: o.CreatedAt,
	}
	for _, item := range o.Items {
		e.Items = append(e.Items, event.Item{SKU: item.SKU, Name: item.Name, Quantity: item.Quantity, UnitPrice: item.UnitPrice})
	}
	return e
}
