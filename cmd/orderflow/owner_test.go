package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

func TestAKeyIsCreatedListedAndRevoked(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	keys := func(args ...string) result {
		return orderflow(t.Context(), append(append([]string{"keys"}, args...), "--database-url", db.URL)...)
	}
	created := keys("create", "--name", "shop", "--role", "service")
	secret := strings.TrimSpace(created.stdout)
	if created.code != 0 || len(secret) < 20 || strings.ContainsAny(secret, " \n") {
		t.Fatalf("create = exit %d, %q, %q; want the secret alone on stdout", created.code, created.stdout, created.stderr)
	}
	if got := keys("create", "--name", "ada", "--role", "user", "--user-id", "ada", "-o", "json"); got.code != 0 || !strings.Contains(got.stdout, `"user_id": "ada"`) {
		t.Errorf("create of a user's key = exit %d, %s%s", got.code, got.stdout, got.stderr)
	}

	// The api knows it, and nothing but its hash is stored.
	served := unused(t)
	s := serveInBackground(t, "api", "--database-url", db.RoleURL("orders"), "--addr", served, "--dev")
	wantReady(t, s, "http://"+served+"/readyz")
	use := func() result {
		return orderflow(t.Context(), "orders", "list", "--api", "http://"+served, "--api-key", secret)
	}
	if got := use(); got.code != 0 {
		t.Errorf("orders list with the new key = exit %d, %s", got.code, got.stderr)
	}
	var stored int
	if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM orders.api_keys AS k WHERE k::text LIKE '%' || $1 || '%'`, secret).Scan(&stored); err != nil || stored != 0 {
		t.Errorf("rows with the secret in clear = %d, %v; want none", stored, err)
	}

	if got := keys("create", "--name", "shop", "--role", "service"); got.code != exitConflict {
		t.Errorf("a second key of the name = exit %d, want %d", got.code, exitConflict)
	}
	if got := keys("revoke", "shop"); got.code != 0 || !strings.Contains(got.stderr, "--yes") {
		t.Errorf("revoke without --yes = exit %d, %s; want the plan only", got.code, got.stderr)
	}
	if got := use(); got.code != 0 {
		t.Errorf("orders list after a plan to revoke = exit %d, want the key to work", got.code)
	}
	if got := keys("revoke", "shop", "--yes"); got.code != 0 {
		t.Errorf("revoke = exit %d, %s", got.code, got.stderr)
	}
	waitUntil(t, "the revoked key is refused", func() bool { return use().code == exitFailure })
	if got := keys("revoke", "shop", "--yes"); got.code != exitConflict {
		t.Errorf("a second revoke = exit %d, want %d", got.code, exitConflict)
	}
	if got := keys("revoke", "nobody", "--yes"); got.code != exitNotFound {
		t.Errorf("revoke of no key = exit %d, want %d", got.code, exitNotFound)
	}
	var docs []keyDoc
	if got := keys("list", "-o", "json"); json.Unmarshal([]byte(got.stdout), &docs) != nil || len(docs) != 2 || docs[0].Name != "ada" || docs[1].RevokedAt == nil {
		t.Errorf("list = exit %d, %s; want ada's key and the revoked one", got.code, got.stdout)
	}
	if got := keys("revoke", docs[0].ID, "--yes"); got.code != 0 {
		t.Errorf("revoke by id = exit %d, %s", got.code, got.stderr)
	}
}

func TestBadKeysAndFilesAreRefusedBeforeAnythingIsStored(t *testing.T) {
	t.Parallel()
	db, empty := migrated.New(t), pgtest.NewEmpty(t)
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const header = "sku,name,unit_price,currency,stock\n"
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr []string
	}{
		{"a key of no role", []string{"keys", "create", "--name", "x"}, exitUsage, []string{"--role"}},
		{"a user's key without a user", []string{"keys", "create", "--name", "x", "--role", "user"}, exitUsage, []string{"--user-id"}},
		{"a service's key with a user", []string{"keys", "create", "--name", "x", "--role", "service", "--user-id", "ada"}, exitUsage, []string{"--user-id"}},
		{"a database that is not migrated", []string{"keys", "list", "--database-url", empty.URL}, exitFailure, []string{"orderflow migrate"}},
		{"a role that is not the owner", []string{"products", "import", "--sample", "--database-url", db.RoleURL("orders")}, exitFailure, []string{"owner"}},
		{"neither file nor sample", []string{"products", "import"}, exitUsage, []string{"--sample"}},
		{"a file that is not there", []string{"products", "import", "/nowhere.csv"}, exitUsage, []string{"/nowhere.csv"}},
		{"a file of another kind", []string{"products", "import", file("x.xml", "")}, exitUsage, []string{".jsonl"}},
		{"an empty file", []string{"products", "import", file("x.csv", "")}, exitUsage, []string{"empty"}},
		{"a header alone", []string{"products", "import", file("x.csv", header)}, exitUsage, []string{"no products"}},
		{"a column too few", []string{"products", "import", file("x.csv", "sku,name,unit_price,currency\n")}, exitUsage, []string{"line 1", "stock"}},
		{
			"wrong lines are all named, and the good one is not stored",
			[]string{"products", "import", file("x.csv", header+"good,Good,1,EUR,1\n-bad,Bad,1,EUR,1\nb,B,1.50,EUR,1\nc,C,0,eur,-1\ngood,Again,1,EUR,1\nd,D\n")},
			exitUsage, []string{"line 3: sku", "line 4: unit_price", `"1.50"`, "line 5: unit_price", "line 5: currency", "line 5: stock", "line 6: sku good is on line 2", "line 7", "nothing was stored"},
		},
		{
			"wrong objects are named too",
			[]string{"products", "import", file("x.jsonl", `{"sku":"good","name":"G","unit_price":1,"currency":"EUR","stock":1}`+"\n"+`{"sku":"x"}`+"\n\n"+`{"skew":"x"}`+"\n{")},
			exitUsage, []string{"line 2: a field is missing", `line 4: unknown field "skew"`, "line 5"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := tc.args
			if !strings.Contains(strings.Join(args, " "), "--database-url") {
				args = append(args, "--database-url", db.URL)
			}
			got := orderflow(t.Context(), args...)
			for _, want := range tc.stderr {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("stderr lacks %q: %s", want, got.stderr)
				}
			}
			if got.code != tc.code {
				t.Errorf("exit %d, want %d: %s", got.code, tc.code, got.stderr)
			}
		})
	}
	var rows int
	if err := db.Pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM orders.products) + (SELECT count(*) FROM orders.api_keys)`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("rows after nothing but refusals = %d, %v; want none", rows, err)
	}
}

func TestProductsAreAddedAndChangedAroundWhatOrdersHold(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	ctx := t.Context()
	load := func(name, content string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := orderflow(ctx, "products", "import", path, "--database-url", db.URL); got.code != 0 {
			t.Fatalf("import %s = exit %d, %s", name, got.code, got.stderr)
		}
	}
	load("a.csv", "\ufeffstock,sku,name,unit_price,currency\n10,mug,\"A mug, blue\",1890,EUR\n5,pen,Pen,250,EUR\n")
	// Two mugs are reserved and one has been shipped.
	if _, err := db.Pool.Exec(ctx, `UPDATE orders.stock SET available = 7, reserved = 2, shipped = 1 WHERE sku = 'mug'`); err != nil {
		t.Fatal(err)
	}
	load("b.jsonl", `{"sku":"mug","name":"A mug","unit_price":1990,"currency":"EUR","stock":4}`+"\n"+`{"sku":"bowl","name":"Bowl","unit_price":3,"currency":"JPY","stock":0}`+"\n")

	list := func() []string {
		t.Helper()
		rows, err := db.Pool.Query(ctx, `
			SELECT sku, name, unit_price, currency, initial, available, reserved, shipped
			FROM orders.products
			JOIN orders.stock USING (sku)
			ORDER BY sku`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var got []string
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(values...))
		}
		return got
	}
	want := []string{
		fmt.Sprint("bowl", "Bowl", int64(3), "JPY", int64(0), int64(0), int64(0), int64(0)),
		fmt.Sprint("mug", "A mug", int64(1990), "EUR", int64(7), int64(4), int64(2), int64(1)),
		fmt.Sprint("pen", "Pen", int64(250), "EUR", int64(5), int64(5), int64(0), int64(0)),
	}
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("catalog after two imports (-want +got):\n%s", diff)
	}
	if got := orderflow(ctx, "products", "import", "--sample", "--database-url", db.URL); got.code != 0 {
		t.Errorf("import --sample = exit %d, %s", got.code, got.stderr)
	}
	if got := len(list()); got != 3+len(order.Catalog()) {
		t.Errorf("products after the sample = %d, want %d", got, 3+len(order.Catalog()))
	}
}
