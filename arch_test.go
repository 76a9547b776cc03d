package orderflow

import (
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/orderflow-dev/orderflow/"

// directions are the imports that may not be, each with the reason a reader of the failure needs.
var directions = []struct {
	from, to string // path prefixes below the module
	reason   string
}{
	{from: "outbox", to: "internal/", reason: "the libraries stand alone: other teams import them"},
	{from: "inbox", to: "internal/", reason: "the libraries stand alone: other teams import them"},
	{from: "saga", to: "internal/", reason: "the libraries stand alone: other teams import them"},
	{from: "outbox", to: "services/", reason: "the libraries stand alone: other teams import them"},
	{from: "inbox", to: "services/", reason: "the libraries stand alone: other teams import them"},
	{from: "saga", to: "services/", reason: "the libraries stand alone: other teams import them"},
	{from: "outbox", to: "inbox", reason: "outbox is the lowest of the three"},
	{from: "outbox", to: "saga", reason: "outbox is the lowest of the three"},
	{from: "inbox", to: "saga", reason: "inbox and saga do not know each other"},
	{from: "saga", to: "inbox", reason: "inbox and saga do not know each other"},
	{from: "internal/event", to: "", reason: "the wire contract imports nothing of ours"},
	{from: "internal/", to: "services/", reason: "services stand above internal packages"},
	{from: "internal/", to: "cmd/", reason: "commands stand above internal packages"},
	{from: "services/", to: "cmd/", reason: "commands stand above services"},
	{from: "", to: "internal/pgtest", reason: "test kits are imported by tests only"},
	{from: "", to: "internal/event/eventtest", reason: "test kits are imported by tests only"},
	{from: "", to: "internal/tally", reason: "test kits are imported by tests only"},
	{from: "", to: "internal/kafkatest", reason: "test kits are imported by tests only"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func TestImportsKeepTheirDirection(t *testing.T) {
	packages := list(t)
	if len(packages) < 5 {
		t.Fatalf("go list found %d packages, want the whole module", len(packages))
	}
	for _, p := range packages {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module)
			if !ours || to == from {
				continue
			}
			for _, rule := range directions {
				if rule.to != "" && within(from, rule.to) {
					continue // the package is a part of what the rule guards
				}
				if within(from, rule.from) && within(to, rule.to) {
					t.Errorf("%s imports %s: %s", from, to, rule.reason)
				}
			}
			if a, b := service(from), service(to); a != "" && b != "" && a != b {
				t.Errorf("%s imports %s: services never import each other, shared words live in internal/event", from, to)
			}
		}
	}
}

// within reports whether path lies below prefix. A library's test helpers (outbox/outboxtest) belong to the library.
func within(path, prefix string) bool {
	return prefix == "" || path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

// service returns the service that path belongs to, or "".
func service(path string) string {
	rest, ok := strings.CutPrefix(path, "services/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// list returns the module's packages with the imports of their non-test files.
func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := decoder.Decode(&p)
		if err == io.EOF {
			return packages
		}
		if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, p)
	}
}
