package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/orderflow-dev/orderflow/internal/config"
)

type settings struct {
	url     string
	port    int
	brokers []string
	wait    time.Duration
}

func newFlags(s *settings) *pflag.FlagSet {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.StringVar(&s.url, "database-url", "default", "")
	flags.IntVar(&s.port, "port", 1, "")
	flags.StringSliceVar(&s.brokers, "brokers", nil, "")
	flags.DurationVar(&s.wait, "wait", time.Second, "")
	return flags
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

func TestBindTakesTheFirstOfFlagEnvironmentFileDefault(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(secret, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"the default holds when nothing is set", nil, nil, "default"},
		{"the environment replaces the default", nil, map[string]string{"ORDERFLOW_DATABASE_URL": "from-env"}, "from-env"},
		{"a file's content loses its last line break", nil, map[string]string{"ORDERFLOW_DATABASE_URL_FILE": secret}, "from-file"},
		{"the command line wins", []string{"--database-url=from-flag"}, map[string]string{"ORDERFLOW_DATABASE_URL": "from-env"}, "from-flag"},
		{"an empty variable counts as not set", nil, map[string]string{"ORDERFLOW_DATABASE_URL": ""}, "default"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var s settings
			flags := newFlags(&s)
			if err := flags.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			if err := config.Bind(flags, lookup(tt.env)); err != nil {
				t.Fatal(err)
			}
			if s.url != tt.want {
				t.Errorf("Bind(%v, %v): database-url = %q, want %q", tt.args, tt.env, s.url, tt.want)
			}
		})
	}
}

func TestOnCommandLineTellsAFlagFromTheEnvironment(t *testing.T) {
	t.Parallel()
	flags := newFlags(&settings{})
	if err := flags.Parse([]string{"--port=2"}); err != nil {
		t.Fatal(err)
	}
	if err := config.Bind(flags, lookup(map[string]string{"ORDERFLOW_DATABASE_URL": "x", "ORDERFLOW_PORT": "3"})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"port": true, "database-url": false, "wait": false} {
		if got := config.OnCommandLine(flags.Lookup(name)); got != want {
			t.Errorf("OnCommandLine(--%s) = %v, want %v", name, got, want)
		}
	}
}

func TestBindReadsListsAndDurations(t *testing.T) {
	t.Parallel()
	var s settings
	err := config.Bind(newFlags(&s), lookup(map[string]string{"ORDERFLOW_BROKERS": "a:1,b:2", "ORDERFLOW_WAIT": "5m"}))
	if err != nil || !slices.Equal(s.brokers, []string{"a:1", "b:2"}) || s.wait != 5*time.Minute {
		t.Errorf("Bind = %v with brokers %v, wait %v; want a:1 b:2 and 5m", err, s.brokers, s.wait)
	}
}

func TestBindReportsEveryMistakeAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "port")
	if err := os.WriteFile(secret, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	var s settings
	err := config.Bind(newFlags(&s), lookup(map[string]string{
		"ORDERFLOW_DATABASE_URL":      "x",
		"ORDERFLOW_DATABASE_URL_FILE": secret,
		"ORDERFLOW_PORT_FILE":         secret,
		"ORDERFLOW_BROKERS_FILE":      dir,
		"ORDERFLOW_WAIT":              "soon",
	}))
	if !errors.Is(err, config.ErrInvalid) {
		t.Fatalf("Bind = %v, want ErrInvalid", err)
	}
	for _, want := range []string{"4 mistakes", "keep one", "ORDERFLOW_PORT_FILE", "regular file", "ORDERFLOW_WAIT"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Bind = %v, want it to contain %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Bind = %v, want nothing of what a file holds", err)
	}
}

func TestUnknownFindsTypingErrors(t *testing.T) {
	t.Parallel()
	environ := []string{"PATH=/bin", "ORDERFLOW_PROT=1", "ORDERFLOW_PORT=1", "ORDERFLOW_DATABASE_URL_FILE=x", "ORDERFLOW_TEST_POSTGRES=y"}
	if got, want := config.Unknown(environ, newFlags(&settings{})), []string{"ORDERFLOW_PROT"}; !slices.Equal(got, want) {
		t.Errorf("Unknown(%v) = %v, want %v", environ, got, want)
	}
}

func TestCheckNotesWhatCannotWork(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		check func(*config.Check)
		want  string // "" when there is nothing to note
	}{
		{"a missing setting names flag and variable", func(c *config.Check) { c.Required("api-key", "") }, "ORDERFLOW_API_KEY"},
		{"a URL of the right kind", func(c *config.Check) { c.URL("database-url", "postgres://me@db/shop", "postgres") }, ""},
		{"a URL of another kind keeps its password to itself", func(c *config.Check) { c.URL("database-url", "mysql://me:pw@db/shop", "postgres") }, "begins with postgres://"},
		{"a missing URL", func(c *config.Check) { c.URL("database-url", "", "postgres") }, "is required"},
		{"an address without a host", func(c *config.Check) { c.Address("addr", ":8080") }, ""},
		{"an address without a port", func(c *config.Check) { c.Address("addr", "localhost") }, "host:port"},
		{"a port that does not exist", func(c *config.Check) { c.Address("addr", "localhost:70000") }, "65535"},
		{"no brokers", func(c *config.Check) { c.Addresses("brokers", nil) }, "is required"},
		{"a number in its range", func(c *config.Check) { c.Between("size", 5, 1, 5) }, ""},
		{"a number out of its range", func(c *config.Check) { c.Between("size", 6, 1, 5) }, "from 1 to 5"},
		{"a duration of nothing", func(c *config.Check) { c.Positive("wait", 0) }, "positive"},
		{"a choice that is none", func(c *config.Check) { c.OneOf("format", "xml", "text", "json") }, "text, json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c config.Check
			tt.check(&c)
			err := c.Err()
			if tt.want == "" && err != nil {
				t.Errorf("Err() = %v, want nil", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Err() = %v, want it to contain %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "pw") {
				t.Errorf("Err() = %v, want no password in it", err)
			}
		})
	}
}
