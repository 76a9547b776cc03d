// Package alerts_test checks the alert rules against what is really exported and written.
package alerts_test

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/saga"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func rules(t *testing.T, file string) (all []rule) {
	t.Helper()
	raw, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	var doc struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	decoder := yaml.NewDecoder(raw)
	decoder.KnownFields(true)
	if err := decoder.Decode(&doc); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, g := range doc.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// files are the rules of each library, with the least of what they are about, and a service in trouble that exports their metrics.
var files = []struct {
	name    string
	rules   int
	about   string
	trouble func(*testing.T) http.Handler
}{
	{"saga.yml", 4, "sagas in doubt, stuck, overdue, and compensations", failingSaga},
	{"inbox.yml", 3, "held keys, dead letters, and no room for more", failingConsumer},
}

// An alert whose metric nobody exports never fires, and looks like good news.
func TestTheMetricsOfTheAlertsAreExported(t *testing.T) {
	t.Parallel()
	for _, file := range files {
		t.Run(file.name, func(t *testing.T) {
			t.Parallel()
			all := rules(t, file.name)
			if len(all) < file.rules {
				t.Fatalf("%d rules, want those for %s", len(all), file.about)
			}
			metrics := file.trouble(t)
			wanted := func(context.Context) error {
				shown := scrape(t, metrics)
				for _, r := range all {
					for _, selector := range selectors.FindAllStringSubmatch(r.Expr, -1) {
						if !exported(shown, selector[1], selector[2]) {
							return errors.New("alert " + r.Alert + ": no sample of " + selector[0])
						}
					}
				}
				return nil
			}
			if err := await.New(nil, 0).For(t.Context(), "samples", wanted, func(error) bool { return true }); err != nil {
				t.Errorf("%v\n%s", err, scrape(t, metrics))
			}
		})
	}
}

func TestTheAlertsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, file := range files {
		for _, r := range rules(t, file.name) {
			if r.Alert == "" || r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
				t.Errorf("%s: rule %+v, want a name, a summary and a severity", file.name, r)
			}
			if !selectors.MatchString(r.Expr) {
				t.Errorf("alert %s looks at no metric of ours: %s", r.Alert, r.Expr)
			}
			if page, anchor, _ := strings.Cut(r.Annotations["runbook"], "#"); !hasSection(t, "../../"+page, anchor) {
				t.Errorf("alert %s: %s has no section %q", r.Alert, page, anchor)
			}
		}
	}
}

// selectors are the metrics of an expression with their matchers.
var selectors = regexp.MustCompile(`((?:saga|inbox)_\w+)(?:\{([^}]*)\})?`)

var matchers = regexp.MustCompile(`(\w+)(=|!=)"([^"]*)"`)

// exported reports whether a sample of the metric meets the matchers.
func exported(samples []string, metric, matching string) bool {
	for _, line := range samples {
		labels, ok := strings.CutPrefix(line, metric)
		if !ok || labels == "" || labels[0] != '{' && labels[0] != ' ' {
			continue
		}
		met := true
		for _, m := range matchers.FindAllStringSubmatch(matching, -1) {
			has := strings.Contains(labels, m[1]+`="`)
			equal := strings.Contains(labels, m[1]+`="`+m[3]+`"`)
			met = met && has && equal == (m[2] == "=")
		}
		if met {
			return true
		}
	}
	return false
}

func scrape(t *testing.T, metrics http.Handler) (samples []string) {
	t.Helper()
	answer := httptest.NewRecorder()
	metrics.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(answer.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			samples = append(samples, strings.TrimSpace(line))
		}
	}
	return samples
}

// failingSaga runs an engine over a saga whose compensation fails, and returns what it exports.
func failingSaga(t *testing.T) http.Handler {
	t.Helper()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, saga.Migrations(), "public")
	tel := metered(t, "order")
	nothing := func(context.Context, pgx.Tx, *saga.Instance) error { return nil }
	refuse := func(context.Context, pgx.Tx, *saga.Instance) error { return saga.Rejected("no") }
	fail := func(context.Context, pgx.Tx, *saga.Instance) error { return errors.New("cannot be taken back") }
	def := saga.Define("trip", 1, saga.Local("hold seat", nothing).Undo(fail), saga.Local("refuse", refuse).Pivot())
	err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
		return saga.Start(t.Context(), tx, saga.NewInstance{ID: uuid.New(), Lane: "anna", Definition: "trip", Version: 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	engine, err := saga.NewEngine(db.Pool, []*saga.Definition{def}, saga.EngineOptions{
		RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond, Meter: tel.Meter, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, engine.Run)
	return tel.Metrics
}

// failingConsumer runs a consumer over a message that is dead and a key that is held and has no room for its second message, and
// returns what it exports.
func failingConsumer(t *testing.T) http.Handler {
	t.Helper()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, outbox.Migrations(), "public")
	db.Migrate(t, inbox.Migrations(), "public")
	broker := kafkatest.New(t, "orders")
	tel := metered(t, "order")
	handle := func(_ context.Context, _ pgx.Tx, m inbox.Message) error {
		if m.Key == "anna" {
			return inbox.Permanent(errors.New("never"))
		}
		return inbox.RetryAfter(time.Hour, errors.New("not yet"))
	}
	consumer, err := inbox.NewConsumer(db.Pool, "order", []inbox.Route{{Topic: "orders", Type: "order.placed.v1", Handle: handle}}, inbox.Options{
		Kafka: []kgo.Opt{kgo.SeedBrokers(broker.Addrs...)}, MaxHeldPerKey: 1, Meter: tel.Meter,
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, consumer.Run)
	for _, key := range []string{"anna", "bert", "bert"} {
		broker.Produce(t, &kgo.Record{Topic: "orders", Key: []byte(key), Value: []byte("{}"), Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: []byte("1.0")},
			{Key: "ce_id", Value: []byte(uuid.Must(uuid.NewV7()).String())},
			{Key: "ce_type", Value: []byte("order.placed.v1")},
			{Key: "ce_source", Value: []byte("/test")},
		}})
	}
	return tel.Metrics
}

func metered(t *testing.T, service string) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return tel
}

// background runs until the test ends.
func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// hasSection reports whether a page has a heading with the anchor that GitHub gives it.
func hasSection(t *testing.T, page, anchor string) bool {
	t.Helper()
	raw, err := os.Open(page)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	for lines := bufio.NewScanner(raw); lines.Scan(); {
		title, ok := strings.CutPrefix(strings.TrimLeft(lines.Text(), "#"), " ")
		if ok && strings.HasPrefix(lines.Text(), "#") && strings.ReplaceAll(strings.ToLower(title), " ", "-") == anchor {
			return true
		}
	}
	return false
}
