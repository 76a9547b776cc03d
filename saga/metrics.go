package saga

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the engine's instruments. Labels are definitions and steps: both come from code, so they are few.
type metrics struct {
	steps  metric.Int64Counter
	local  metric.Float64Histogram
	calls  metric.Float64Histogram
	undos  metric.Int64Counter
	ends   metric.Int64Counter
	reruns metric.Int64Counter
	fences metric.Int64Counter
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	var (
		m    metrics
		errs [7]error
	)
	m.steps, errs[0] = meter.Int64Counter("saga_steps", metric.WithDescription("Local steps run, by outcome."))
	m.calls, errs[1] = meter.Float64Histogram("saga_call_duration", metric.WithUnit("s"),
		metric.WithDescription("Remote calls, by step, kind and outcome."),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30))
	m.ends, errs[2] = meter.Int64Counter("saga_finished", metric.WithDescription("Instances that ended, by state and failure."))
	m.reruns, errs[3] = meter.Int64Counter("saga_reruns", metric.WithDescription("Instances whose transaction failed for the database's reasons."))
	m.fences, errs[4] = meter.Int64Counter("saga_fenced", metric.WithDescription("Lanes lost to another engine or to an operator."))
	m.local, errs[5] = meter.Float64Histogram("saga_step_duration", metric.WithUnit("s"),
		metric.WithDescription("Local steps, by step, kind and outcome; a batch counts once."),
		metric.WithExplicitBucketBoundaries(.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5))
	m.undos, errs[6] = meter.Int64Counter("saga_compensations", metric.WithDescription("Tries of compensations, local and remote, by step and outcome."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("instruments: %w", err)
	}
	return &m, nil
}

func outcomeOf(err error) string {
	var (
		rejected *rejectedError
		notSent  *notSentError
		stuck    *stuckError
	)
	switch {
	case err == nil:
		return "succeeded"
	case errors.As(err, &rejected):
		return "rejected"
	case errors.As(err, &notSent):
		return "not_sent"
	case errors.As(err, &stuck):
		return "stuck"
	}
	return "failed"
}

func kindOf(a act) string {
	switch a {
	case actUndo, actUndoSend:
		return "undo"
	case actAsk:
		return "query"
	case actEnd:
		return "end"
	default:
		return "do"
	}
}

func (m *metrics) step(ctx context.Context, s *state, a act, failure error) {
	m.steps.Add(ctx, 1, metric.WithAttributes(
		attribute.String("definition", s.in.Definition), attribute.String("step", s.in.Step),
		attribute.String("kind", kindOf(a)), attribute.String("outcome", outcomeOf(failure))))
	if a == actUndo {
		m.undone(ctx, s, outcomeOf(failure))
	}
}

// took records one run of a local function: of one instance, or of all in its batch.
func (m *metrics) took(ctx context.Context, s *state, a act, failure error, d time.Duration) {
	m.local.Record(ctx, d.Seconds(), metric.WithAttributes(
		attribute.String("definition", s.in.Definition), attribute.String("step", s.in.Step),
		attribute.String("kind", kindOf(a)), attribute.String("outcome", outcomeOf(failure))))
}

func (m *metrics) undone(ctx context.Context, s *state, outcome string) {
	m.undos.Add(ctx, 1, metric.WithAttributes(
		attribute.String("definition", s.in.Definition), attribute.String("step", s.in.Step), attribute.String("outcome", outcome)))
}

func (m *metrics) call(ctx context.Context, s *state, a act, ev *event) {
	outcome := outcomeOf(ev.err)
	switch {
	case a == actAsk && ev.err == nil:
		outcome = string(ev.answer.found)
	case outcome == "failed" && a == actSend:
		outcome = "unknown"
	}
	m.calls.Record(ctx, ev.duration.Seconds(), metric.WithAttributes(
		attribute.String("definition", s.in.Definition), attribute.String("step", s.in.Step),
		attribute.String("kind", kindOf(a)), attribute.String("outcome", outcome)))
	if a == actUndoSend {
		m.undone(ctx, s, outcome)
	}
}

func (m *metrics) finished(ctx context.Context, s *state) {
	m.ends.Add(ctx, 1, metric.WithAttributes(
		attribute.String("definition", s.in.Definition), attribute.String("state", string(s.in.State)),
		attribute.String("failure", string(s.in.Failure.Kind))))
}

func (m *metrics) rerun(ctx context.Context, n int) { m.reruns.Add(ctx, int64(n)) }

func (m *metrics) fenced(ctx context.Context) { m.fences.Add(ctx, 1) }
