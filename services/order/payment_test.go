package order

import (
	"testing"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

func TestAnIntentOverOtherMoneyStopsTheSaga(t *testing.T) {
	t.Parallel()
	want := payment.Intent{Amount: 1000, Currency: "EUR", Reference: "order"}
	tests := []struct {
		name string
		got  payment.Intent
		ok   bool
	}{
		{"the same is charged", payment.Intent{ID: "pi_1", Amount: 1000, Currency: "EUR", Reference: "order"}, true},
		{"another amount", payment.Intent{ID: "pi_1", Amount: 100000, Currency: "EUR", Reference: "order"}, false},
		{"another currency", payment.Intent{ID: "pi_1", Amount: 1000, Currency: "JPY", Reference: "order"}, false},
		{"another order", payment.Intent{ID: "pi_1", Amount: 1000, Currency: "EUR", Reference: "other"}, false},
		{"no id", payment.Intent{Amount: 1000, Currency: "EUR", Reference: "order"}, false},
	}
	for _, tt := range tests {
		if err := matches(tt.got, want); (err == nil) != tt.ok {
			t.Errorf("%s: matches(%+v, %+v) = %v", tt.name, tt.got, want, err)
		}
	}
}
