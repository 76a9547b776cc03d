package migrations

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/saga"
)

//go:embed orders/*.sql email/*.sql warehouse/*.sql
var files embed.FS

// part is one folder of migrations inside a schema, with a version table of its own: the libraries number theirs
// independently of ours.
type part struct {
	name  string
	table string
	files fs.FS
}

// schema is one service's part of the database.
type schema struct {
	name  string
	parts []part
}

func (s schema) role() string      { return s.name }
func (s schema) relayRole() string { return s.name + "_relay" }

// uses reports whether the schema has the tables of a library.
func (s schema) uses(library string) bool {
	return slices.ContainsFunc(s.parts, func(p part) bool { return p.name == library })
}

// allSchemas lists every schema. The libraries come first: a schema's own files may build on them.
func allSchemas() ([]schema, error) {
	outboxPart := part{"outbox", "outbox_migrations", outbox.Migrations()}
	inboxPart := part{"inbox", "inbox_migrations", inbox.Migrations()}
	sagaPart := part{"saga", "saga_migrations", saga.Migrations()}
	schemas := []schema{
		{"orders", []part{outboxPart, inboxPart, sagaPart}},
		{"email", []part{outboxPart, inboxPart}},
		{"warehouse", []part{outboxPart, inboxPart}},
	}
	for i, s := range schemas {
		own, err := fs.Sub(files, s.name)
		if err != nil {
			return nil, fmt.Errorf("open the migrations of schema %s: %w", s.name, err)
		}
		schemas[i].parts = append(schemas[i].parts, part{"schema", "schema_migrations", own})
	}
	return schemas, nil
}

// choose returns the named schemas, all of them when names is empty.
func choose(names []string) ([]schema, error) {
	all, err := allSchemas()
	if err != nil || len(names) == 0 {
		return all, err
	}
	var chosen []schema
	for _, name := range names {
		i := slices.IndexFunc(all, func(s schema) bool { return s.name == name })
		if i < 0 {
			var known []string
			for _, s := range all {
				known = append(known, s.name)
			}
			return nil, fmt.Errorf("no schema %q: there are %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}
