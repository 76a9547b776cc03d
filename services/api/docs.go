package api

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"regexp"
	"strings"
)

//go:embed docs.html
var docsPage string

// documented is the part of the OpenAPI document that the page shows.
type documented struct {
	Info  struct{ Title, Description string }
	Paths map[string]map[string]struct {
		Summary    string
		Parameters []struct {
			Name, In, Description string
			Required              bool
		}
		RequestBody *struct {
			Content map[string]struct{ Schema schemaRef }
		}
		Responses map[string]struct{ Description string }
	}
	Components struct{ Schemas map[string]schema }
}

type schemaRef struct {
	Ref    string `json:"$ref"`
	Type   any
	Format string
	Items  *schemaRef
	Enum   []any
}

type schema struct {
	Properties map[string]struct {
		schemaRef
		Description string
		Examples    []any
	}
	Required []string
}

// Name returns what the page calls the schema, and links it by.
func (r schemaRef) Name() string {
	switch {
	case r.Ref != "":
		return r.Ref[strings.LastIndex(r.Ref, "/")+1:]
	case r.Items != nil:
		return r.Items.Name() + " list"
	case r.Format != "":
		return r.Format
	default:
		return fmt.Sprint(r.Type)
	}
}

// page is what the documentation is made from.
type page struct {
	documented
	// Base is the address of this installation, as the reader reached it.
	Base string
	// Key is what the example sends.
	Key string
}

// docsHandler serves the documentation as one page that needs no network and no scripts, made from the document. Its example
// is good as it stands if key is one of this installation's; "" leaves a place to fill in.
func docsHandler(document []byte, key string) (http.HandlerFunc, error) {
	var doc documented
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	made, err := template.New("docs").Funcs(template.FuncMap{"upper": strings.ToUpper}).Parse(docsPage)
	if err != nil {
		return nil, fmt.Errorf("read the page of the documentation: %w", err)
	}
	show := func(w io.Writer, base string) error {
		if err := made.Execute(w, page{documented: doc, Base: base, Key: cmp.Or(key, "YOUR-API-KEY")}); err != nil {
			return fmt.Errorf("make the page of the documentation: %w", err)
		}
		return nil
	}
	if err := show(io.Discard, ""); err != nil {
		return nil, err
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		w.Header().Set("Cache-Control", "no-store")
		_ = show(w, base(r)) // a client that has gone away needs no page
	}, nil
}

// plainHost is a host with or without a port that a shell takes for nothing else: it stands in a command to copy.
var plainHost = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]+)?$|^\[[0-9A-Fa-f:.]+\](:[0-9]+)?$`)

// base returns the address at which a client reached this server, as far as it can be known behind a proxy.
func base(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	if !plainHost.MatchString(r.Host) {
		return scheme + "://HOST"
	}
	return scheme + "://" + r.Host
}

// documentHandler serves the OpenAPI document.
func documentHandler(document []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(document) // a client that has gone away needs no document
	}
}
