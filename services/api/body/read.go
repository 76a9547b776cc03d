package body

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Object is a JSON object whose fields are read by name.
type Object struct {
	pointer  string
	fields   map[string]value
	names    []string // in the order they came
	known    map[string]bool
	mistakes *[]Mistake // shared by all objects of one body
}

// Mistakes returns what was wrong so far, in the whole body.
func (o *Object) Mistakes() []Mistake { return *o.mistakes }

// At returns the JSON Pointer of a field.
func (o *Object) At(name string) string { return o.at(name) }

// Note adds a mistake of the caller's own.
func (o *Object) Note(name, detail string) { o.note(o.at(name), detail) }

func (o *Object) note(pointer, detail string) {
	*o.mistakes = append(*o.mistakes, Mistake{Pointer: pointer, Detail: detail})
}

// plain is what a name must look like to be repeated in an answer. Any other comes from nobody who reads answers.
var plain = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

func (o *Object) at(name string) string {
	if !plain.MatchString(name) {
		return o.pointer
	}
	return o.pointer + "/" + name
}

// take returns the field, or notes that it is missing.
func (o *Object) take(name string) (value, bool) {
	if o.known == nil {
		o.known = map[string]bool{}
	}
	o.known[name] = true
	v, ok := o.fields[name]
	if !ok {
		o.Note(name, "is required")
	}
	return v, ok
}

// Text is what a string must look like.
type Text struct {
	// MaxRunes is the most characters it may have. Required.
	MaxRunes int
	// Pattern must match, if there is one; Want says what it stands for.
	Pattern *regexp.Regexp
	Want    string
	// Lines allows line breaks and tabs. Other control characters are never allowed, and NUL cannot be stored at all.
	Lines bool
}

// String reads a required string that is not empty. It reports whether the value may be used.
func (o *Object) String(name string, want Text) (string, bool) {
	v, ok := o.take(name)
	if !ok {
		return "", false
	}
	s, ok := v.(string)
	switch {
	case !ok:
		o.Note(name, "must be a string")
	case s == "":
		o.Note(name, "must not be empty")
	case utf8.RuneCountInString(s) > want.MaxRunes:
		o.Note(name, fmt.Sprintf("must have at most %d characters", want.MaxRunes))
	case strings.ContainsFunc(s, func(r rune) bool { return control(r) && (!want.Lines || r != '\r' && r != '\n' && r != '\t') }):
		o.Note(name, "must not contain control characters")
	case want.Pattern != nil && !want.Pattern.MatchString(s):
		o.Note(name, "must be "+want.Want)
	default:
		return s, true
	}
	return "", false
}

// control reports whether r is a C0 or C1 control character or DEL.
func control(r rune) bool { return r < 0x20 || r >= 0x7F && r < 0xA0 }

// Int reads a required integer from low to high. It reports whether the value may be used.
func (o *Object) Int(name string, low, high int64) (int64, bool) {
	v, ok := o.take(name)
	if !ok {
		return 0, false
	}
	number, ok := v.(json.Number)
	if !ok {
		o.Note(name, "must be an integer")
		return 0, false
	}
	if strings.ContainsAny(number.String(), ".eE") {
		o.Note(name, "must be an integer, written without a fraction or exponent")
		return 0, false
	}
	// The only error left is a number beyond int64, which is out of every range.
	n, err := strconv.ParseInt(number.String(), 10, 64)
	if err != nil || n < low || n > high {
		o.Note(name, fmt.Sprintf("must be from %d to %d", low, high))
		return 0, false
	}
	return n, true
}

// Objects reads a required array of low to high objects. An element that is something else is noted and left out. When
// there are too many, none is returned: one mistake is enough.
func (o *Object) Objects(name string, low, high int) []*Object {
	v, ok := o.take(name)
	if !ok {
		return nil
	}
	list, ok := v.([]value)
	if !ok {
		o.Note(name, "must be an array")
		return nil
	}
	if len(list) < low || len(list) > high {
		o.Note(name, fmt.Sprintf("must have from %d to %d elements", low, high))
		return nil
	}
	var objects []*Object
	for i, element := range list {
		object, ok := element.(*Object)
		if !ok {
			o.note(o.at(name)+"/"+strconv.Itoa(i), "must be an object")
			continue
		}
		objects = append(objects, object)
	}
	return objects
}

// End notes every field that was not read: a field that is ignored is a wish that is not granted.
func (o *Object) End() {
	noted := map[string]bool{}
	for _, name := range o.names {
		if !o.known[name] && !noted[name] {
			noted[name] = true
			o.Note(name, "is not a field of this request")
		}
	}
}
