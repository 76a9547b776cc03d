// Package table prints what a benchmark measured beside what it aims at.
package table

import (
	"fmt"
	"slices"
	"strings"
)

// Row is one line. Without an aim it is there to be read beside the others.
type Row struct {
	Name   string
	Value  float64
	Format string // of Value
	Aim    string
	Met    bool
}

// String is the row as [Print] prints it.
func (r Row) String() string {
	verdict := ""
	if r.Aim != "" {
		verdict = "missed"
		if r.Met {
			verdict = "met"
		}
	}
	return strings.TrimRight(fmt.Sprintf("%-64s %12s   %-16s %s", r.Name, fmt.Sprintf(r.Format, r.Value), r.Aim, verdict), " ")
}

// Ratio is a row of the median of values, which aims at no less than least.
func Ratio(name string, values []float64, least float64) Row {
	median := Median(values)
	return Row{Name: name, Value: median, Format: "%.2f", Aim: fmt.Sprint("≥ ", least), Met: median >= least}
}

// Print prints rows under a heading.
func Print(rows []Row) {
	fmt.Printf("\n%-64s %12s   %s\n", "leg", "measured", "aim")
	for _, r := range rows {
		fmt.Println(r)
	}
}

// Median returns the middle one of values, of which there is at least one.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Quantile returns the value that a share q of values, of which there is at least one, lies below.
func Quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
