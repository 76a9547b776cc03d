package body

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may be nested.
const MaxDepth = 16

// Why a body is not one JSON object. The sentences are fit for the client.
var (
	ErrEmpty     = errors.New("the body is empty; send a JSON object")
	ErrMalformed = errors.New("the body is not well-formed JSON")
	ErrTrailing  = errors.New("the body goes on after its JSON object")
	ErrNotObject = errors.New("the body is JSON, but not an object")
	ErrEncoding  = errors.New("the body is not valid UTF-8")
	ErrDeep      = fmt.Errorf("the body is nested more than %d levels deep", MaxDepth)
)

// Mistake is one thing that is wrong in a request, and where.
type Mistake struct {
	Pointer string
	Detail  string
}

// value is one parsed JSON value: nil, bool, string, json.Number, []value or *Object.
type value any

// Parse reads raw, which must hold one JSON object.
func Parse(raw []byte) (*Object, error) {
	if !utf8.Valid(raw) {
		return nil, ErrEncoding
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, ErrEmpty
	}
	if !pairedSurrogates(raw) {
		return nil, ErrEncoding
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	p := parser{tokens: d, mistakes: new([]Mistake)}
	v, err := p.value("", 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, ErrTrailing
	}
	o, ok := v.(*Object)
	if !ok {
		return nil, ErrNotObject
	}
	return o, nil
}

// parser builds the tree from tokens: decoding into a map would keep the last of two equal names and forget the first.
type parser struct {
	tokens   *json.Decoder
	mistakes *[]Mistake
}

func (p parser) value(pointer string, depth int) (value, error) {
	if depth > MaxDepth {
		return nil, ErrDeep
	}
	token, err := p.tokens.Token()
	if err != nil {
		return nil, ErrMalformed // the decoder's own words quote the body
	}
	delim, ok := token.(json.Delim)
	switch {
	case !ok:
		return token, nil
	case delim == '{':
		return p.object(pointer, depth)
	default:
		return p.array(pointer, depth)
	}
}

func (p parser) object(pointer string, depth int) (value, error) {
	o := &Object{pointer: pointer, fields: map[string]value{}, mistakes: p.mistakes}
	for p.tokens.More() {
		token, err := p.tokens.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, ErrMalformed
		}
		v, err := p.value(o.at(name), depth+1)
		if err != nil {
			return nil, err
		}
		if _, twice := o.fields[name]; twice {
			o.note(o.at(name), "is there twice")
		}
		o.fields[name] = v
		o.names = append(o.names, name)
	}
	if _, err := p.tokens.Token(); err != nil { // the closing brace
		return nil, ErrMalformed
	}
	return o, nil
}

func (p parser) array(pointer string, depth int) (value, error) {
	list := []value{}
	for p.tokens.More() {
		v, err := p.value(pointer+"/"+strconv.Itoa(len(list)), depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	if _, err := p.tokens.Token(); err != nil { // the closing bracket
		return nil, ErrMalformed
	}
	return list, nil
}

// pairedSurrogates reports whether every \u escape of half a character has its other half. encoding/json replaces a lone
// half by U+FFFD and says nothing, which would store something other than what was sent.
func pairedSurrogates(raw []byte) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		code, ok := escape(raw[i:])
		switch {
		case !ok:
			i++ // another escape: skip what it escapes, which may be a backslash
		case code >= 0xD800 && code < 0xDC00:
			if low, ok := escape(raw[i+6:]); !ok || low < 0xDC00 || low > 0xDFFF {
				return false
			}
			i += 11
		case code >= 0xDC00 && code <= 0xDFFF:
			return false
		default:
			i += 5
		}
	}
	return true
}

// escape reads the \uXXXX at the start of raw.
func escape(raw []byte) (code uint64, ok bool) {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return 0, false
	}
	code, err := strconv.ParseUint(string(raw[2:6]), 16, 16)
	return code, err == nil
}
