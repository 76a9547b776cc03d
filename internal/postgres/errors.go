package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Outage reports whether err says that Postgres is not able to work at the moment, so that the same call may succeed
// later without any change. A refused statement, a conflict or a wrong password is not an outage, and neither is a call
// whose own context ended: how long to wait was the caller's choice.
func Outage(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return outageCode(pgErr.Code)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	// A session that was cut shows as one of these, depending on who noticed first.
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		(err != nil && strings.Contains(err.Error(), "conn closed"))
}

// outageCode judges an SQLSTATE.
func outageCode(code string) bool {
	switch code {
	case "57P01", "57P02", "57P03", // shutting down, crashed, starting up
		"25006": // read only: connected to a standby during a fail-over
		return true
	}
	switch code[:min(2, len(code))] {
	case "08", // connection
		"53", // out of connections, disk or memory
		"58": // input and output
		return true
	}
	return false
}

// Retryable reports whether err ended a transaction only because of others that ran beside it: running it again from its
// start is right. A deadlock and a serialization failure are; a lock that was not granted in time is too.
func Retryable(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "40001" || pgErr.Code == "40P01" || pgErr.Code == "55P03")
}

// unreachable says what was tried, why it failed and what to do next. The password stays out of it.
func unreachable(config *pgx.ConnConfig, err error) error {
	address := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	what := fmt.Sprintf("connect to Postgres at %s, database %s, as %s", address, config.Database, config.User)
	pgErr, refused := errors.AsType[*pgconn.PgError](err)
	switch {
	case refused && strings.HasPrefix(pgErr.Code, "28"):
		return fmt.Errorf("%s: %w: %s; check user and password in the URL, and that `orderflow migrate` has created the role", what, ErrUnreachable, pgErr.Message)
	case refused && pgErr.Code == "3D000":
		return fmt.Errorf("%s: %w: %s; create it, or correct the URL", what, ErrUnreachable, pgErr.Message)
	case refused:
		return fmt.Errorf("%s: %w: %w", what, ErrUnreachable, err)
	default:
		return fmt.Errorf("%s: %w: start it, or correct the URL (`orderflow dev` brings its own): %w", what, ErrUnreachable, err)
	}
}
