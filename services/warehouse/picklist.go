package warehouse

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/orderflow-dev/orderflow/internal/event"
)

const (
	aisles  = 8
	shelves = 40
)

// pickLine is one line of a pick list: what to take from which bin.
type pickLine struct {
	event.ShipmentItem
	bin string
}

// pickList returns the lines in the order of a walk through the aisles.
func pickList(items []event.ShipmentItem) []pickLine {
	lines := make([]pickLine, 0, len(items))
	for _, item := range items {
		lines = append(lines, pickLine{item, binOf(item.SKU)})
	}
	slices.SortStableFunc(lines, func(a, b pickLine) int {
		return cmp.Or(cmp.Compare(a.bin, b.bin), cmp.Compare(a.SKU, b.SKU))
	})
	return lines
}

// binOf returns where a SKU lies: aisle and shelf, as in "C-07". The warehouse keeps no catalog of its own; a hash gives
// every SKU a bin that is always the same, and spreads them.
func binOf(sku string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(sku)) // never fails
	sum := h.Sum32()
	return fmt.Sprintf("%c-%02d", 'A'+rune(sum%aisles), sum/aisles%shelves+1)
}
