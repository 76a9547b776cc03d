package api

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
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

// docsHandler serves the documentation as one page that needs no network and no scripts, made once from the document.
func docsHandler(document []byte) (http.HandlerFunc, error) {
	var doc documented
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	page, err := template.New("docs").Funcs(template.FuncMap{"upper": strings.ToUpper}).Parse(docsPage)
	if err != nil {
		return nil, fmt.Errorf("read the page of the documentation: %w", err)
	}
	var html bytes.Buffer
	if err := page.Execute(&html, doc); err != nil {
		return nil, fmt.Errorf("make the page of the documentation: %w", err)
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		_, _ = w.Write(html.Bytes()) // a client that has gone away needs no page
	}, nil
}

// documentHandler serves the OpenAPI document.
func documentHandler(document []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(document) // a client that has gone away needs no document
	}
}
