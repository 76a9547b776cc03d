package money_test

import (
	"testing"

	"github.com/orderflow-dev/orderflow/internal/money"
)

func TestMoneyIsWrittenFromMinorUnits(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		amount   int64
		currency string
		want     string
	}{
		{0, "EUR", "0.00 EUR"},
		{5, "EUR", "0.05 EUR"},
		{1250, "USD", "12.50 USD"},
		{123456789, "EUR", "1,234,567.89 EUR"},
		{100000, "EUR", "1,000.00 EUR"},
		{-1250, "EUR", "-12.50 EUR"},
		{500, "JPY", "500 JPY"},
		{1234567, "JPY", "1,234,567 JPY"},
		{1500, "KWD", "1.500 KWD"},
		{9223372036854775807, "EUR", "92,233,720,368,547,758.07 EUR"},
		{-9223372036854775808, "EUR", "-92,233,720,368,547,758.08 EUR"},
	} {
		if got := money.Format(tc.amount, tc.currency); got != tc.want {
			t.Errorf("Format(%d, %s): got %q, want %q", tc.amount, tc.currency, got, tc.want)
		}
	}
}
