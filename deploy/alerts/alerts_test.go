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
	"go.yaml.in/yaml/v3"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
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

// An alert whose metric nobody exports never fires, and looks like good news.
func TestTheMetricsOfTheSagaAlertsAreExported(t *testing.T) {
	t.Parallel()
	all := rules(t, "saga.yml")
	if len(all) < 4 {
		t.Fatalf("%d rules, want those for sagas in doubt, stuck, overdue, and for compensations", len(all))
	}
	metrics := trouble(t)
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
}

func TestTheSagaAlertsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, r := range rules(t, "saga.yml") {
		if r.Alert == "" || r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
			t.Errorf("rule %+v, want a name, a summary and a severity", r)
		}
		if !selectors.MatchString(r.Expr) {
			t.Errorf("alert %s looks at no metric of package saga: %s", r.Alert, r.Expr)
		}
		if page, anchor, _ := strings.Cut(r.Annotations["runbook"], "#"); !hasSection(t, "../../"+page, anchor) {
			t.Errorf("alert %s: %s has no section %q", r.Alert, page, anchor)
		}
	}
}

// selectors are the metrics of an expression with their matchers.
var selectors = regexp.MustCompile(`(saga_\w+)(?:\{([^}]*)\})?`)

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

// trouble runs an engine over a saga whose compensation fails, and returns what it exports.
func trouble(t *testing.T) http.Handler {
	t.Helper()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, saga.Migrations(), "public")
	tel, err := telemetry.New("order")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	nothing := func(context.Context, pgx.Tx, *saga.Instance) error { return nil }
	refuse := func(context.Context, pgx.Tx, *saga.Instance) error { return saga.Rejected("no") }
	fail := func(context.Context, pgx.Tx, *saga.Instance) error { return errors.New("cannot be taken back") }
	def := saga.Define("trip", 1, saga.Local("hold seat", nothing).Undo(fail), saga.Local("refuse", refuse).Pivot())
	err = pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
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
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return tel.Metrics
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
