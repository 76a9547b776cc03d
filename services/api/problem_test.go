package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func refused(code string) error { return fmt.Errorf("insert: %w", &pgconn.PgError{Code: code}) }

// F20, F27: what is wrong with Postgres is the client's to wait for, not a fault of the request.
func TestDatabaseErrorsBecomeAnswers(t *testing.T) {
	t.Parallel()
	p := &prepass{log: slog.New(slog.DiscardHandler)}
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"the disk is full", refused("53100"), 503},
		{"there are too many connections", refused("53300"), 503},
		{"Postgres is shutting down", refused("57P01"), 503},
		{"Postgres is starting", refused("57P03"), 503},
		{"the database is a standby", refused("25006"), 503},
		{"a lock was not granted in time", refused("55P03"), 503},
		{"a statement took too long", refused("57014"), 503},
		{"a deadlock", refused("40P01"), 503},
		{"the connection broke", fmt.Errorf("read: %w", io.ErrUnexpectedEOF), 503},
		{"no connection in time", fmt.Errorf("acquire: %w", context.DeadlineExceeded), 503},
		{"a mistake of ours", refused("42703"), 500},
		{"anything else", errors.New("what"), 500},
		{"an answer that is made already", fmt.Errorf("deep inside: %w", notFound()), 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := p.problem(t.Context(), "GET /", tt.err)
			if got.Status != tt.want || tt.want == http.StatusServiceUnavailable && got.GetHeaders().Get("Retry-After") == "" {
				t.Errorf("problem(%v) = %d, Retry-After %q; want %d", tt.err, got.Status, got.GetHeaders().Get("Retry-After"), tt.want)
			}
		})
	}
}

func TestOnlyAProvenRollbackIsNotAnUnknownCommit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want bool // nothing was committed
	}{
		{"the transaction was broken before", pgx.ErrTxCommitRollback, true},
		{"a deferred constraint", refused("23505"), true},
		{"a serialization failure", refused("40001"), true},
		{"completion unknown", refused("40003"), false},
		{"Postgres is shutting down", refused("57P01"), false},
		{"the disk is full", refused("53100"), false},
		{"the connection broke", io.ErrUnexpectedEOF, false},
		{"the time is up", context.DeadlineExceeded, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := refusedCommit(tt.err); got != tt.want {
				t.Errorf("refusedCommit(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

func TestCursorsAreGoodForTheirListOnly(t *testing.T) {
	t.Parallel()
	c, other := cursors{secret: []byte("one")}, cursors{secret: []byte("two")}
	cursor := c.make("orders\x00ada\x00", "17")
	if place, ok := c.place("orders\x00ada\x00", cursor); !ok || place != "17" {
		t.Errorf("place = %q, %v; want 17", place, ok)
	}
	for name, tt := range map[string]struct {
		c            cursors
		list, cursor string
	}{
		"another list":       {c, "orders\x00ben\x00", cursor},
		"another secret":     {other, "orders\x00ada\x00", cursor},
		"a changed place":    {c, "orders\x00ada\x00", cursor[:len(cursor)-1] + "A"},
		"nothing but a sign": {c, "orders\x00ada\x00", cursor[:13]},
		"not base64":         {c, "orders\x00ada\x00", "!"},
		"empty":              {c, "orders\x00ada\x00", ""},
		// A list's name and a place must not run into each other.
		"a border that moved": {c, "orders\x00ada", c.make("orders\x00ada\x00", "\x0017")},
	} {
		if place, ok := tt.c.place(tt.list, tt.cursor); ok {
			t.Errorf("%s: place = %q, want it refused", name, place)
		}
	}
}
