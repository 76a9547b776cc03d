// Package providers chooses a payment provider by its name.
package providers

import (
	"cmp"
	"fmt"

	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/internal/payment/sandboxpay"
	"github.com/orderflow-dev/orderflow/internal/payment/stripepay"
)

// Names of the providers.
const (
	Sandbox = "sandbox"
	Stripe  = "stripe"
)

// Names lists the providers.
func Names() []string { return []string{Sandbox, Stripe} }

// Config says which provider, and how it is reached. The zero value is the sandbox of this machine.
type Config struct {
	// Name is one of [Names]. Default [Sandbox].
	Name string
	// URL is the provider's base URL. Default http://127.0.0.1:8090, or Stripe's own.
	URL string
	// StripeKey is the secret key of the Stripe account. Required for Stripe.
	StripeKey string
}

// Webhooks returns the reader of a provider's reports, which are signed with any of the secrets. The default of name is
// [Sandbox].
func Webhooks(name string, secrets ...string) (payment.Webhooks, error) {
	switch name = cmp.Or(name, Sandbox); name {
	case Sandbox:
		return sandboxpay.NewWebhooks(secrets...), nil
	case Stripe:
		return stripepay.NewWebhooks(secrets...), nil
	default:
		return nil, fmt.Errorf("there is no payment provider %q", name)
	}
}

// Open returns the provider's client, which connects when it is used. The caller closes it.
func Open(cfg Config) (payment.Provider, error) {
	switch name := cmp.Or(cfg.Name, Sandbox); name {
	case Sandbox:
		return sandboxpay.New(cmp.Or(cfg.URL, "http://127.0.0.1:8090"))
	case Stripe:
		return stripepay.New(cfg.StripeKey, cfg.URL)
	default:
		return nil, fmt.Errorf("there is no payment provider %q", name)
	}
}
