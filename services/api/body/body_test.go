package body_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/services/api/body"
)

func TestParseTakesOneObjectAndNothingElse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, raw string
		want      error
	}{
		{"an object", `{"a":1}`, nil},
		{"an object in white space", " \n{\"a\":1}\t\r\n", nil},
		{"nothing", "", body.ErrEmpty},
		{"only white space", " \n", body.ErrEmpty},
		{"null", "null", body.ErrNotObject},
		{"an array", "[]", body.ErrNotObject},
		{"a string", `"{}"`, body.ErrNotObject},
		{"an object that is cut off", `{"a":`, body.ErrMalformed},
		{"an object without its end", `{"a":1`, body.ErrMalformed},
		{"a missing comma", `{"a":1 "b":2}`, body.ErrMalformed},
		{"a trailing comma", `{"a":1,}`, body.ErrMalformed},
		{"a name that is not a string", `{1:2}`, body.ErrMalformed},
		{"a raw control character in a string", "{\"a\":\"\x01\"}", body.ErrMalformed},
		{"two objects", `{"a":1}{"b":2}`, body.ErrTrailing},
		{"garbage behind the object", `{"a":1}x`, body.ErrTrailing},
		{"bytes that are not UTF-8", "{\"a\":\"\xff\"}", body.ErrEncoding},
		{"an escaped half of a character", `{"a":"\ud800"}`, body.ErrEncoding},
		{"the other half alone", `{"a":"\udc00"}`, body.ErrEncoding},
		{"two first halves", `{"a":"\ud800\ud800"}`, body.ErrEncoding},
		{"an escaped pair", `{"a":"\ud83d\ude00"}`, nil},
		{"an escaped backslash before a u", `{"a":"\\ud800"}`, nil},
		{"nesting without end", strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), body.ErrDeep},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := body.Parse([]byte(tt.raw)); !errors.Is(err, tt.want) {
				t.Errorf("Parse(%q) = %v, want %v", tt.raw, err, tt.want)
			}
		})
	}
}

func TestMistakesSayWhere(t *testing.T) {
	t.Parallel()
	word := body.Text{MaxRunes: 5, Pattern: regexp.MustCompile(`^[a-zé]+$`), Want: "a word"}
	tests := []struct {
		name, raw string
		want      []string // pointers
	}{
		{"nothing is wrong", `{"word":"café","n":1,"list":[{"n":9007199254740993}]}`, nil},
		{"everything is missing", `{}`, []string{"/word", "/n", "/list"}},
		{"a field that nobody asked for", `{"word":"a","n":1,"list":[{"n":1,"price":2}],"more":{}}`, []string{"/list/0/price", "/more"}},
		{"a field name that must not be repeated", `{"word":"a","n":1,"list":[{"n":1}],"<script>":1}`, []string{""}},
		{"a field that is there twice", `{"word":"a","word":"b","n":1,"list":[{"n":1}]}`, []string{"/word"}},
		{"wrong types", `{"word":1,"n":"1","list":{}}`, []string{"/word", "/n", "/list"}},
		{"null is not a value", `{"word":null,"n":null,"list":null}`, []string{"/word", "/n", "/list"}},
		{"an element that is no object", `{"word":"a","n":1,"list":[1,{"n":1}]}`, []string{"/list/0"}},
		{"too few elements", `{"word":"a","n":1,"list":[]}`, []string{"/list"}},
		{"too many elements", `{"word":"a","n":1,"list":[{},{},{}]}`, []string{"/list"}},
		{"a number with a fraction", `{"word":"a","n":1.0,"list":[{"n":1}]}`, []string{"/n"}},
		{"a number with an exponent", `{"word":"a","n":1e2,"list":[{"n":1}]}`, []string{"/n"}},
		{"a number beyond int64", `{"word":"a","n":9223372036854775808,"list":[{"n":1}]}`, []string{"/n"}},
		{"a number below the range", `{"word":"a","n":0,"list":[{"n":-1}]}`, []string{"/n", "/list/0/n"}},
		{"too many characters", `{"word":"aaaaaa","n":1,"list":[{"n":1}]}`, []string{"/word"}},
		{"an empty string", `{"word":"","n":1,"list":[{"n":1}]}`, []string{"/word"}},
		{"an escaped NUL", `{"word":"a\u0000","n":1,"list":[{"n":1}]}`, []string{"/word"}},
		{"an escaped control character", `{"word":"a\u009f","n":1,"list":[{"n":1}]}`, []string{"/word"}},
		{"a line break where none may be", `{"word":"a\r\nb","n":1,"list":[{"n":1}]}`, []string{"/word"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o, err := body.Parse([]byte(tt.raw))
			if err != nil {
				t.Fatal(err)
			}
			o.String("word", word)
			o.Int("n", 1, 1000)
			for _, element := range o.Objects("list", 1, 2) {
				element.Int("n", 0, 1<<62)
				element.End()
			}
			o.End()
			var got []string
			for _, m := range o.Mistakes() {
				got = append(got, m.Pointer)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mistakes of %s (-want +got):\n%s", tt.raw, diff)
			}
		})
	}
}

func TestTextIsReadAsItWasSent(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`'; DROP TABLE orders; --`, `<script>alert(1)</script>`, "one\r\ntwo\tthree", "😀 ﷽", `\u0000`} {
		o, err := body.Parse([]byte(`{"text":` + quoted(text) + `}`))
		if err != nil {
			t.Fatal(err)
		}
		got, ok := o.String("text", body.Text{MaxRunes: 100, Lines: true})
		if !ok || got != text {
			t.Errorf("String = %q, %v; want %q", got, ok, text)
		}
	}
}

// quoted is s as JSON, with as few escapes as can be.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", `\r`, "\n", `\n`, "\t", `\t`).Replace(s) + `"`
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"a":"b"}`, `{"a":1e9,"b":[{"c":null}]}`, `{"a":"\ud83d\ude00"}`, `null`, "\xff", `{"a":"\\ud800"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := body.Parse(raw)
		if err != nil {
			if len(err.Error()) > 100 {
				t.Errorf("Parse(%q) says too much: %v", raw, err)
			}
			return
		}
		if s, ok := o.String("a", body.Text{MaxRunes: 10}); ok && (!utf8.ValidString(s) || strings.ContainsRune(s, 0) || strings.ContainsRune(s, utf8.RuneError) && !strings.Contains(string(raw), "\uFFFD") && !strings.Contains(strings.ToLower(string(raw)), `\ufffd`)) {
			t.Errorf("String of %q = %q, which cannot be stored or is not what was sent", raw, s)
		}
		o.End()
	})
}
