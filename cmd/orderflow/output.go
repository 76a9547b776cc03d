package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// output prints data to stdout in the format that the user chose.
type output struct {
	w      io.Writer
	format string
	colour bool
}

func addOutputFlag(cmd *cobra.Command) {
	cmd.Flags().StringP("output", "o", "table", "how to print: table, json or jsonl (one document per line)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "jsonl"}, cobra.ShellCompDirectiveNoFileComp))
}

func newOutput(cmd *cobra.Command) (*output, error) {
	format, err := cmd.Flags().GetString("output")
	if err != nil {
		return nil, err
	}
	switch format {
	case "table", "json", "jsonl":
	default:
		return nil, usage("use table, json or jsonl", "unknown output format %q", format)
	}
	w := cmd.OutOrStdout()
	return &output{w: w, format: format, colour: wantsColour(w)}, nil
}

// wantsColour reports whether w is a terminal whose user has not asked for plain text (https://no-color.org).
func wantsColour(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// table is what `-o table` prints.
type table struct {
	header []string
	rows   [][]cell
	empty  string // printed instead of a table without rows
}

type cell struct {
	text  string
	style string // "", "good", "bad", "dim"
}

func (t *table) add(cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case cell:
			row[i] = c
		case string:
			row[i] = cell{text: c}
		default:
			row[i] = cell{text: fmt.Sprint(c)}
		}
	}
	t.rows = append(t.rows, row)
}

// list prints several documents: as t, as one JSON array, or a document per line.
func list[T any](o *output, docs []T, t *table) error {
	switch o.format {
	case "json":
		if docs == nil {
			docs = []T{} // "[]", not "null"
		}
		return o.json(docs)
	case "jsonl":
		for _, doc := range docs {
			if err := o.line(doc); err != nil {
				return err
			}
		}
		return nil
	}
	return o.table(t)
}

// one prints a single document.
func one(o *output, doc any, t *table) error {
	switch o.format {
	case "json":
		return o.json(doc)
	case "jsonl":
		return o.line(doc)
	}
	return o.table(t)
}

func (o *output) json(doc any) error {
	enc := json.NewEncoder(o.w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

func (o *output) line(doc any) error {
	enc := json.NewEncoder(o.w)
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

func (o *output) table(t *table) error {
	if len(t.rows) == 0 {
		if t.empty == "" {
			return nil
		}
		_, err := fmt.Fprintln(o.w, t.empty)
		return err
	}
	var b strings.Builder
	widths := t.widths()
	if t.header != nil {
		head := make([]cell, len(t.header))
		for i, name := range t.header {
			head[i] = cell{text: name, style: "dim"}
		}
		o.row(&b, head, widths)
	}
	for _, row := range t.rows {
		o.row(&b, row, widths)
	}
	_, err := io.WriteString(o.w, b.String())
	return err
}

func (t *table) widths() []int {
	var widths []int
	measure := func(i int, text string) {
		if i == len(widths) {
			widths = append(widths, 0)
		}
		widths[i] = max(widths[i], utf8.RuneCountInString(printable(text)))
	}
	for i, name := range t.header {
		measure(i, name)
	}
	for _, row := range t.rows {
		for i, c := range row {
			measure(i, c.text)
		}
	}
	return widths
}

func (o *output) row(b *strings.Builder, row []cell, widths []int) {
	for i, c := range row {
		text := printable(c.text)
		b.WriteString(o.paint(text, c.style))
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
		}
	}
	b.WriteByte('\n')
}

func (o *output) paint(text, style string) string {
	code := map[string]string{"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}[style]
	if !o.colour || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// printable shows control characters instead of sending them to the terminal: text from messages and errors may come
// from anyone. Line breaks stay.
func printable(s string) string {
	if !strings.ContainsFunc(s, mustEscape) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if mustEscape(r) {
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func mustEscape(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Bidi_Control, r))
}

// optionalTime leaves a zero time out of JSON.
func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// statusCell colours the status of an order.
func statusCell(status string) cell {
	switch status {
	case "completed", "shipped":
		return cell{status, "good"}
	case "rejected", "payment_failed", "cancelled", "refunded":
		return cell{status, "bad"}
	}
	return cell{status, "warn"}
}
