package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// LogOptions says how to log. The zero value logs text from level info.
type LogOptions struct {
	// Format is "text" or "json". Default text.
	Format string
	// Level is "debug", "info", "warn" or "error". Default info.
	Level string
}

// NewLog returns a logger that writes to w and adds the id of the trace that a line belongs to.
func NewLog(w io.Writer, opts LogOptions) (*slog.Logger, error) {
	var level slog.Level
	if opts.Level != "" {
		if err := level.UnmarshalText([]byte(opts.Level)); err != nil {
			return nil, fmt.Errorf("log level must be debug, info, warn or error, is %q", opts.Level)
		}
	}
	handlerOptions := &slog.HandlerOptions{Level: level}
	switch opts.Format {
	case "", "text":
		return slog.New(traceHandler{slog.NewTextHandler(w, handlerOptions)}), nil
	case "json":
		return slog.New(traceHandler{slog.NewJSONHandler(w, handlerOptions)}), nil
	}
	return nil, fmt.Errorf("log format must be text or json, is %q", opts.Format)
}

// traceHandler adds trace_id to the lines that are logged with the context of a request or a message.
type traceHandler struct{ slog.Handler }

func (h traceHandler) Handle(ctx context.Context, record slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		record.AddAttrs(slog.String("trace_id", span.TraceID().String()))
	}
	return h.Handler.Handle(ctx, record)
}

func (h traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceHandler{h.Handler.WithAttrs(attrs)}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	return traceHandler{h.Handler.WithGroup(name)}
}
