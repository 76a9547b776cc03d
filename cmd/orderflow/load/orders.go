package load

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
)

// Mix says which share of the orders, 0 to 1, uses a payment method that misbehaves. The rest pays with pm_ok.
type Mix struct {
	Declines    float64 // pm_declined: refused by the provider
	LostAnswers float64 // pm_lost_answer: charged, but the provider's answer never arrives
	Timeouts    float64 // pm_timeout: never charged, never answered
	Slow        float64 // pm_slow
	Errors      float64 // pm_error_once: one 500, then fine
}

// Generator makes random orders. It is not safe for concurrent use.
type Generator struct {
	random   *rand.Rand
	users    int
	products []apiclient.Product
	shares   []share
}

type share struct {
	method string
	upTo   float64
}

// NewGenerator returns a generator of orders by users users, for products that are in stock. The same seed gives the same
// orders.
func NewGenerator(seed uint64, users int, products []apiclient.Product, mix Mix) (*Generator, error) {
	g := &Generator{random: rand.New(rand.NewPCG(seed, 0)), users: users} //nolint:gosec // no secrets, and repeatable
	if users < 1 {
		return nil, fmt.Errorf("users must be at least 1, not %d", users)
	}
	for _, p := range products {
		if p.Available > 0 {
			g.products = append(g.products, p)
		}
	}
	if len(g.products) == 0 {
		return nil, errors.New("the catalog has no product in stock")
	}
	var sum float64
	for _, s := range []share{
		{"pm_declined", mix.Declines}, {"pm_lost_answer", mix.LostAnswers}, {"pm_timeout", mix.Timeouts},
		{"pm_slow", mix.Slow}, {"pm_error_once", mix.Errors},
	} {
		if s.upTo < 0 || s.upTo > 1 {
			return nil, fmt.Errorf("the share of %s must be between 0 and 1, not %g", s.method, s.upTo)
		}
		sum += s.upTo
		g.shares = append(g.shares, share{s.method, sum})
	}
	if sum > 1+1e-9 {
		return nil, fmt.Errorf("the shares of the payment methods add up to %g, more than 1", sum)
	}
	return g, nil
}

// Next returns the next order: one to three products of one currency, mostly a single piece of each.
func (g *Generator) Next() apiclient.NewOrder {
	user := fmt.Sprintf("user-%04d", g.random.IntN(g.users)+1)
	o := apiclient.NewOrder{UserID: user, Email: user + "@example.com", PaymentMethod: g.method()}
	for _, i := range g.random.Perm(len(g.products)) {
		p := g.products[i]
		if o.Currency == "" {
			o.Currency = p.Currency
		}
		if p.Currency != o.Currency {
			continue
		}
		o.Items = append(o.Items, apiclient.NewItem{SKU: p.SKU, Quantity: 1 + int64(g.random.ExpFloat64())})
		if len(o.Items) == 3 || g.random.IntN(2) == 0 {
			break
		}
	}
	return o
}

func (g *Generator) method() string {
	roll := g.random.Float64()
	for _, s := range g.shares {
		if roll < s.upTo {
			return s.method
		}
	}
	return "pm_ok"
}
