package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

func TestListPrintsTheSameOrdersInEveryFormat(t *testing.T) {
	t.Parallel()
	_, base := newFakeAPI(t, "completed", "pending", "rejected")
	list := func(format string) string {
		got := orderflow(t.Context(), "orders", "list", "--api", base, "--api-key", "key", "-o", format)
		if got.code != 0 || got.stderr != "" {
			t.Fatalf("list -o %s = exit %d, stderr %q", format, got.code, got.stderr)
		}
		return got.stdout
	}
	lines := strings.Split(strings.TrimSpace(list("table")), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "ID") || !strings.Contains(lines[1], "18.90 EUR") {
		t.Errorf("table = %q, want a header and three orders of two pages", lines)
	}
	if strings.Contains(strings.Join(lines, ""), "\x1b") {
		t.Error("a table that goes into a pipe has colours")
	}
	var array []map[string]any
	if err := json.Unmarshal([]byte(list("json")), &array); err != nil || len(array) != 3 || array[0]["extra"] != "kept" {
		t.Errorf("json = %v, %v; want three orders with every field of the api", array, err)
	}
	jsonl := strings.Split(strings.TrimSpace(list("jsonl")), "\n")
	var last map[string]any
	if err := json.Unmarshal([]byte(jsonl[len(jsonl)-1]), &last); err != nil || len(jsonl) != 3 || last["status"] != "rejected" {
		t.Errorf("jsonl = %q, %v; want an order a line", jsonl, err)
	}
}

func TestAnEmptyListIsAnEmptyArray(t *testing.T) {
	t.Parallel()
	_, base := newFakeAPI(t)
	for format, want := range map[string]string{"table": "no orders\n", "json": "[]\n", "jsonl": ""} {
		got := orderflow(t.Context(), "orders", "list", "--api", base, "--api-key", "key", "-o", format)
		if got.code != 0 || got.stdout != want {
			t.Errorf("list -o %s of nothing = %q, want %q", format, got.stdout, want)
		}
	}
}

func TestTextFromOthersCannotDriveTheTerminal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain ünïcode ✓": "plain ünïcode ✓",
		"two\nlines":      "two\nlines",
		"\x1b[2Jgone":     `\x1b[2Jgone`,
		"bell\a":          `bell\a`,
		"bad \xff utf-8":  `bad \ufffd utf-8`,
		"\u202eright":     `\u202eright`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// commands returns every command of the tree.
func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, child := range cmd.Commands() {
		all = append(all, commands(child)...)
	}
	return all
}

func TestEveryFlagCanBeSetByTheEnvironment(t *testing.T) {
	values := map[string]string{
		"string": "x", "bool": "true", "int": "7", "int32": "7", "int64": "7", "uint64": "7", "float64": "0.5", "duration": "7s",
		"stringArray": "x", "stringSlice": "x",
	}
	for _, cmd := range commands(newRoot(os.Stdout, os.Stderr)) {
		if cmd.Name() == "help" || strings.HasPrefix(cmd.CommandPath(), "orderflow completion") {
			continue
		}
		cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
			if flag.Name == "help" || flag.Name == "version" {
				return
			}
			t.Run(cmd.CommandPath()+" --"+flag.Name, func(t *testing.T) {
				value, ok := values[flag.Value.Type()]
				if !ok {
					t.Fatalf("no test value for a flag of type %s", flag.Value.Type())
				}
				t.Setenv(config.EnvName(flag.Name), value)
				if err := bindEnvironment(cmd); err != nil {
					t.Fatal(err)
				}
				if got := strings.Trim(flag.Value.String(), "[]"); got != value || !flag.Changed {
					t.Errorf("with %s=%s the flag is %q, changed %v", config.EnvName(flag.Name), value, got, flag.Changed)
				}
			})
		})
	}
}

func TestASecretIsReadFromTheFileItIsMountedIn(t *testing.T) {
	_, base := newFakeAPI(t)
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ORDERFLOW_API", base)
	t.Setenv("ORDERFLOW_API_KEY_FILE", path)
	if got := orderflow(t.Context(), "orders", "list"); got.code != 0 {
		t.Errorf("list = exit %d: %s", got.code, got.stderr)
	}
}

func TestATypingErrorInTheEnvironmentIsPointedOut(t *testing.T) {
	t.Setenv("ORDERFLOW_DATABSE_URL", "x")
	if got := orderflow(t.Context(), "version"); got.code != 0 || !strings.Contains(got.stderr, "ORDERFLOW_DATABSE_URL") {
		t.Errorf("version = exit %d, stderr %q; want a warning that names the variable", got.code, got.stderr)
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	for _, cmd := range commands(newRoot(os.Stdout, os.Stderr)) {
		if cmd.Short == "" {
			t.Errorf("%s has no short help", cmd.CommandPath())
		}
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Example == "" && cmd.Name() != "help" && cmd.Parent().Name() != "completion" && cmd.Long == "" {
			t.Errorf("%s has neither a description nor an example", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
			if flag.Usage == "" {
				t.Errorf("%s --%s has no help", cmd.CommandPath(), flag.Name)
			}
		})
	}
}

func TestServicesListEveryMistakeAtOnce(t *testing.T) {
	t.Parallel()
	nowhere := unused(t) // a broker that happens to run on the usual port must not decide
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"api", []string{"api", "--addr", "nonsense"}, []string{"--addr", "--database-url"}},
		{"relay", []string{"relay", "--ops-addr", "x"}, []string{"--kafka", "--orders-database-url", "--ops-addr"}},
		{"order", []string{"order", "--payment-url", "ftp://x"}, []string{"--kafka", "--database-url", "--payment-url"}},
		{"Stripe without a key", []string{"order", "--payment-provider", "stripe"}, []string{"--stripe-key"}},
		{"a reconcile with Stripe without a key", []string{"payments", "reconcile", "--payment-provider", "stripe"}, []string{"--stripe-key"}},
		{"email", []string{"email", "--connections", "0"}, []string{"--kafka", "--database-url", "--connections"}},
		{"warehouse", []string{"warehouse"}, []string{"--kafka", "--database-url"}},
		{"sandbox", []string{"sandbox", "--smtp-addr", "x"}, []string{"--sandbox-dir", "--smtp-addr"}},
		{"the public password is refused", []string{"warehouse", "--kafka", nowhere, "--database-url", "postgres://warehouse:orderflow-dev-only@db/x"}, []string{"--dev"}},
		{"the public password is refused in the query too", []string{"warehouse", "--kafka", nowhere, "--database-url", "postgres://warehouse@db/x?password=orderflow-dev-only"}, []string{"--dev"}},
		{"the public webhook secret is refused", []string{"api", "--webhook-secret", "a-secret-of-ones-own-1," + devWebhookSecret}, []string{"--webhook-secret", "--dev"}},
		{"a webhook secret that can be guessed", []string{"api", "--webhook-secret", "orderflow-dev-only"}, []string{"--webhook-secret", "20"}},
		{"a provider that is none", []string{"api", "--payment-provider", "cash"}, []string{"--payment-provider"}},
		{"webhooks without a secret", []string{"sandbox", "--webhook-url", "http://127.0.0.1:1/"}, []string{"--webhook-secret"}},
		{"a rate of nothing", []string{"api", "--rate-per-second", "0", "--rate-burst", "-1"}, []string{"--rate-per-second", "--rate-burst"}},
		{"a wait that is negative", []string{"warehouse", "--wait", "-1s"}, []string{"--wait"}},
		{"a log level that is none", []string{"sandbox", "--sandbox-dir", "/tmp/x", "--log-level", "loud"}, []string{"loud"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := orderflow(t.Context(), tc.args...)
			if got.code != exitUsage {
				t.Errorf("orderflow %v = exit %d, want %d (%s)", tc.args, got.code, exitUsage, got.stderr)
			}
			for _, want := range tc.want {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("orderflow %v says %q, want it to name %s", tc.args, got.stderr, want)
				}
			}
			if strings.Contains(got.stderr, "orderflow-dev-only") {
				t.Errorf("orderflow %v repeats a password: %q", tc.args, got.stderr)
			}
		})
	}
}

func TestServicesRefuseTheEmbeddedBroker(t *testing.T) {
	t.Parallel()
	broker := kafkatest.NewFake(t)
	got := orderflow(t.Context(), "warehouse", "--kafka", broker.Addrs[0], "--database-url", "postgres://warehouse:secret@"+unused(t)+"/x")
	if got.code != exitUsage || !strings.Contains(got.stderr, "embedded broker") || !strings.Contains(got.stderr, "--dev") {
		t.Errorf("warehouse on an embedded broker = exit %d, %q; want %d and how to allow it", got.code, got.stderr, exitUsage)
	}
}
