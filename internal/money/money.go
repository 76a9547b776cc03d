// Package money writes amounts for people.
package money

import (
	"strconv"
	"strings"
)

// decimals returns how many decimal places a currency's minor unit has (ISO 4217).
func decimals(currency string) int {
	switch currency {
	case "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF":
		return 0
	case "BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND":
		return 3
	case "CLF", "UYW":
		return 4
	}
	return 2
}

// Format writes an amount of minor units with its currency: 1234567 EUR is "12,345.67 EUR", 500 JPY is "500 JPY".
func Format(amount int64, currency string) string {
	digits, sign := strconv.FormatInt(amount, 10), ""
	if amount < 0 {
		digits, sign = digits[1:], "-"
	}
	n := decimals(currency)
	if missing := n + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	whole, fraction := digits[:len(digits)-n], digits[len(digits)-n:]
	var b strings.Builder
	b.WriteString(sign)
	for i, digit := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	if fraction != "" {
		b.WriteString("." + fraction)
	}
	return b.String() + " " + currency
}
