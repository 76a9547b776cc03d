package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTelemetry(t *testing.T, service string) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return tel
}

func scrape(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	answer := httptest.NewRecorder()
	tel.Metrics.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("GET /metrics = %d: %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

func TestServicesOfOneProcessKeepTheirMetricsApart(t *testing.T) {
	t.Parallel()
	email, api := newTelemetry(t, "email"), newTelemetry(t, "api")
	counter, err := email.Meter.Int64Counter("orderflow.emails.sent", metric.WithDescription("Emails sent."))
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	got := scrape(t, email)
	for _, want := range []string{"orderflow_emails_sent_total 3", `service_name="email"`, "go_goroutines"} {
		if !strings.Contains(got, want) {
			t.Errorf("metrics of email lack %q:\n%s", want, got)
		}
	}
	if got := scrape(t, api); strings.Contains(got, "orderflow_emails_sent_total") {
		t.Error("metrics of api hold a counter of email")
	}
}

func TestTraceContinuesTheCallersTrace(t *testing.T) {
	t.Parallel()
	tel := newTelemetry(t, "api")
	const id = "0af7651916cd43dd8448eb211c80319c"
	tests := []struct {
		name, header string
		want         string // "" when any new id will do
	}{
		{"a caller's trace is continued", "00-" + id + "-b7ad6b7169203331-01", id},
		{"no header begins a trace", "", ""},
		{"a malformed header begins a trace", "00-zz-zz-01", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got trace.SpanContext
			handler := tel.Trace(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				got = trace.SpanContextFromContext(r.Context())
			}))
			request := httptest.NewRequest(http.MethodGet, "/", nil)
			request.Header.Set("traceparent", tt.header)
			handler.ServeHTTP(httptest.NewRecorder(), request)
			if !got.IsValid() || (tt.want != "" && got.TraceID().String() != tt.want) {
				t.Errorf("Trace with traceparent %q: context %v, want trace id %q", tt.header, got.TraceID(), tt.want)
			}
		})
	}
}

func TestLogNamesTheTrace(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := telemetry.NewLog(&out, telemetry.LogOptions{Format: "json", Level: "warn"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := newTelemetry(t, "api").Tracer.Start(t.Context(), "test")
	defer span.End()
	log.InfoContext(ctx, "below the level")
	log.With("service", "api").WarnContext(ctx, "at the level", "attempt", 2)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("log wrote %q: %v", out.String(), err)
	}
	if line["msg"] != "at the level" || line["service"] != "api" || line["trace_id"] != span.SpanContext().TraceID().String() {
		t.Errorf("line = %v, want msg, service and the trace id", line)
	}
}

func TestNewLogRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for _, opts := range []telemetry.LogOptions{{Format: "xml"}, {Level: "loud"}} {
		if _, err := telemetry.NewLog(&bytes.Buffer{}, opts); err == nil {
			t.Errorf("NewLog(%+v) = nil, want an error", opts)
		}
	}
}
