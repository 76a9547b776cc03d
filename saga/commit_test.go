package saga_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// withoutPoints are the functions that write past commit, each with the reason why no test has to crash there.
var withoutPoints = map[string]string{
	"claimLanes": "claimOnce has a point after it, if it brought something; before it, nothing has changed since the last point",
	"renew":      "it lengthens leases, and moves no instance",
	"saveAlone":  "Save calls it inside commit",
	"store":      "Save waits for it inside commit",
}

// A commit that bypasses the crash points is one at which sagatest.EveryCrash never dies.
func TestEveryCommitOfTheEngineHasCrashPoints(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	inside, past := 0, map[string]bool{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			for _, write := range writes(f) {
				switch {
				case write.guarded:
					inside++
				case withoutPoints[f.Name.Name] != "":
					past[f.Name.Name] = true
				default:
					t.Errorf("%s: %s commits with %s, outside of commit: no test can crash there", name, f.Name.Name, write.call)
				}
			}
		}
	}
	if inside < 5 {
		t.Errorf("found %d commits with crash points, want 5 or more: the test does not see them any more", inside)
	}
	for name := range withoutPoints {
		if !past[name] {
			t.Errorf("%s is excused and commits nothing", name)
		}
	}
}

type write struct {
	call    string
	guarded bool
}

// writes finds what can commit something: the end of a transaction, and a statement that is a transaction of its own.
func writes(f *ast.FuncDecl) (found []write) {
	var path []ast.Node
	ast.Inspect(f, func(n ast.Node) bool {
		if n == nil {
			path = path[:len(path)-1]
			return true
		}
		path = append(path, n)
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if what := commits(call); what != "" {
			w := write{call: what}
			for _, above := range path[:len(path)-1] {
				if c, ok := above.(*ast.CallExpr); ok {
					id, ok := c.Fun.(*ast.Ident)
					w.guarded = w.guarded || ok && id.Name == "commit"
				}
			}
			found = append(found, w)
		}
		return true
	})
	return found
}

func commits(call *ast.CallExpr) string {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	name := method.Sel.Name
	switch name {
	case "Commit", "BeginFunc", "BeginTxFunc":
		return name
	case "Exec", "SendBatch", "CopyFrom", "Query", "QueryRow":
	default:
		return ""
	}
	on, ok := method.X.(*ast.SelectorExpr)
	if !ok || on.Sel.Name != "pool" {
		return ""
	}
	if name != "Query" && name != "QueryRow" {
		return "pool." + name
	}
	reads := true
	ast.Inspect(call, func(n ast.Node) bool {
		if sql, ok := n.(*ast.BasicLit); ok {
			for _, verb := range []string{"INSERT ", "UPDATE ", "DELETE "} {
				reads = reads && !strings.Contains(sql.Value, verb)
			}
		}
		return true
	})
	if reads {
		return ""
	}
	return "pool." + name
}
