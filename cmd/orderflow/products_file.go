package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/orderflow-dev/orderflow/internal/order"
)

// maxLineErrors is how many wrong lines are shown.
const maxLineErrors = 20

var (
	skuPattern      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	currencyPattern = regexp.MustCompile(`^[A-Z]{3}$`)
)

// offers collects the products of a file and what is wrong with its lines.
type offers struct {
	list   []order.Offer
	lineOf map[string]int // by SKU
	wrong  []string
}

// readOffers reads a file whose name says its format. The error has a line for each line that is wrong.
func readOffers(name string, file io.Reader) ([]order.Offer, error) {
	o := &offers{lineOf: map[string]int{}}
	var err error
	switch ext := strings.ToLower(filepath.Ext(name)); ext {
	case ".csv":
		err = o.readCSV(file)
	case ".jsonl":
		err = o.readJSONLines(file)
	default:
		return nil, fmt.Errorf("%s: its name must end in .csv or .jsonl", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if n := len(o.wrong); n > 0 {
		if n > maxLineErrors {
			o.wrong = append(o.wrong[:maxLineErrors], fmt.Sprintf("and %d more", n-maxLineErrors))
		}
		return nil, fmt.Errorf("%s: %d mistakes:\n  - %s", name, n, strings.Join(o.wrong, "\n  - "))
	}
	if len(o.list) == 0 {
		return nil, fmt.Errorf("%s holds no products", name)
	}
	return o.list, nil
}

func (o *offers) complain(line int, format string, args ...any) {
	o.wrong = append(o.wrong, fmt.Sprintf("line %d: ", line)+fmt.Sprintf(format, args...))
}

// add checks one product, against the rules of the tables too: their own errors name no line.
func (o *offers) add(line int, p order.Offer) {
	before := len(o.wrong)
	if !skuPattern.MatchString(p.SKU) {
		o.complain(line, "sku must be 1 to 64 letters, digits or . _ -, and begin with a letter or digit; is %q", p.SKU)
	} else if first, twice := o.lineOf[p.SKU]; twice {
		o.complain(line, "sku %s is on line %d already", p.SKU, first)
	}
	if strings.TrimSpace(p.Name) == "" || strings.ContainsRune(p.Name, 0) {
		o.complain(line, "name must not be empty or hold a zero byte")
	}
	if p.UnitPrice <= 0 || p.UnitPrice > order.MaxTotal {
		o.complain(line, "unit_price must be from 1 to %d minor units, is %d", int64(order.MaxTotal), p.UnitPrice)
	}
	if !currencyPattern.MatchString(p.Currency) {
		o.complain(line, "currency must be three capital letters such as EUR, is %q", p.Currency)
	}
	if p.Stock < 0 || p.Stock > maxStock {
		o.complain(line, "stock must be from 0 to %d, is %d", int64(maxStock), p.Stock)
	}
	if len(o.wrong) == before {
		o.list, o.lineOf[p.SKU] = append(o.list, p), line
	}
}

// maxStock leaves room for what orders hold in the table's sum of all units.
const maxStock = 1_000_000_000_000

var columns = []string{"sku", "name", "unit_price", "currency", "stock"}

func (o *offers) readCSV(file io.Reader) error {
	r := csv.NewReader(file)
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	}
	if err != nil {
		return err
	}
	at := map[string]int{}
	for i, name := range header {
		name = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff"))) // spreadsheets begin a file with a mark
		if _, twice := at[name]; twice || !slices.Contains(columns, name) {
			return fmt.Errorf("line 1: column %q is unknown or there twice; the columns are %s", name, strings.Join(columns, ", "))
		}
		at[name] = i
	}
	for _, name := range columns {
		if _, there := at[name]; !there {
			return fmt.Errorf("line 1: column %s is missing; the columns are %s", name, strings.Join(columns, ", "))
		}
	}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, csv.ErrFieldCount) {
			return err // it names the line, and what follows cannot be told apart any more
		}
		line, _ := r.FieldPos(0)
		if err != nil {
			o.complain(line, "it has %d fields, the header has %d", len(row), len(header))
			continue
		}
		price, priceErr := strconv.ParseInt(row[at["unit_price"]], 10, 64)
		stock, stockErr := strconv.ParseInt(row[at["stock"]], 10, 64)
		if priceErr != nil {
			o.complain(line, "unit_price must be a whole number of minor units, is %q", row[at["unit_price"]])
		}
		if stockErr != nil {
			o.complain(line, "stock must be a whole number, is %q", row[at["stock"]])
		}
		if priceErr == nil && stockErr == nil {
			o.add(line, order.Offer{Product: order.Product{
				SKU: row[at["sku"]], Name: row[at["name"]], UnitPrice: price, Currency: row[at["currency"]],
			}, Stock: stock})
		}
	}
}

func (o *offers) readJSONLines(file io.Reader) error {
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var p struct {
			SKU       *string `json:"sku"`
			Name      *string `json:"name"`
			UnitPrice *int64  `json:"unit_price"`
			Currency  *string `json:"currency"`
			Stock     *int64  `json:"stock"`
		}
		dec := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		dec.DisallowUnknownFields() // a misspelled field would be a missing one
		err := dec.Decode(&p)
		if err == nil && dec.More() {
			err = errors.New("more than one object")
		}
		switch {
		case err != nil:
			o.complain(n, "%s", strings.TrimPrefix(err.Error(), "json: "))
		case p.SKU == nil || p.Name == nil || p.UnitPrice == nil || p.Currency == nil || p.Stock == nil:
			o.complain(n, "a field is missing; all of %s are required", strings.Join(columns, ", "))
		default:
			o.add(n, order.Offer{Product: order.Product{SKU: *p.SKU, Name: *p.Name, UnitPrice: *p.UnitPrice, Currency: *p.Currency}, Stock: *p.Stock})
		}
	}
	return lines.Err()
}
