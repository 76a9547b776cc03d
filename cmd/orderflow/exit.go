package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/postgres"
)

// Exit codes. They are part of the interface: scripts branch on them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnreachable = 5
	exitPartial     = 6
	exitCheckFailed = 7
	exitTimeout     = 124
	exitInterrupted = 130
)

// failure is an error with what the user can do about it and with the exit code it ends the process with.
type failure struct {
	code int
	err  error
	hint string // "" or one sentence
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(code int, hint, format string, args ...any) error {
	return &failure{code: code, err: fmt.Errorf(format, args...), hint: hint}
}

func usage(hint, format string, args ...any) error { return fail(exitUsage, hint, format, args...) }

// exitCode returns the code for err. An explicit [failure] decides, then whether a signal came, then the cause.
func exitCode(err error, interrupted bool) int {
	var (
		f           *failure
		problem     *apiclient.Problem
		unreachable *apiclient.Unreachable
		connect     *pgconn.ConnectError
		network     *net.OpError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		return f.code
	case interrupted:
		return exitInterrupted
	case errors.As(err, &problem):
		return problemCode(problem.Status)
	case errors.Is(err, config.ErrInvalid):
		return exitUsage
	// Before the timeout: a try to reach something ends with one when nobody answers.
	case errors.Is(err, postgres.ErrUnreachable), errors.Is(err, kafka.ErrUnreachable), errors.Is(err, kafka.ErrMissingTopic):
		return exitUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.As(err, &unreachable), errors.As(err, &connect), errors.As(err, &network):
		return exitUnreachable
	}
	return exitFailure
}

func problemCode(status int) int {
	switch status {
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict:
		return exitConflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return exitUnreachable
	}
	return exitFailure
}

// printError says what went wrong and, where there is one, what to do next.
func printError(w io.Writer, err error) {
	if message := err.Error(); message != "" {
		fmt.Fprintf(w, "orderflow: %s\n", printable(message))
	}
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(hint, "\n", "\n  "))
	}
}

func hintFor(err error) string {
	var (
		f           *failure
		problem     *apiclient.Problem
		unreachable *apiclient.Unreachable
	)
	switch {
	case errors.As(err, &f) && f.hint != "":
		return f.hint
	case errors.As(err, &unreachable) && !errors.Is(err, context.Canceled):
		return "is it running? `orderflow dev` starts one; --api URL names another"
	case errors.As(err, &problem) && problem.Status == http.StatusUnauthorized:
		return "set --api-key or ORDERFLOW_API_KEY to a key that this api knows"
	case errors.Is(err, postgres.ErrUnreachable):
		return "check the URL, and that Postgres runs there"
	}
	return ""
}
