package inbox

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Classes of errors that the consumer itself gives. Handlers name their own with [PermanentAs] and [WithClass].
const (
	ClassUndecodable        = "undecodable"         // no payload, JSON that is none, or that does not fit the type of a typed route
	ClassBadEnvelope        = "bad_envelope"        // no type, no id, or an id that is no UUIDv7 of the last 28 days (with Options.AnyID: one that is too long)
	ClassUnsupportedVersion = "unsupported_version" // another major version of a type that has a route
	ClassKeyMismatch        = "key_mismatch"        // refused by Route.Check
	ClassIDConflict         = "id_conflict"         // the id is known, with another payload
	ClassTooLarge           = "too_large"           // over Options.MaxPayload or Options.MaxHeaders
	ClassHandlerPanic       = "handler_panic"       // the handler panicked
	ClassPermanent          = "permanent"           // a Permanent error without a class
	ClassTransient          = "transient"           // any other error without a class
	ClassSlowHandler        = "slow_handler"        // handling a held message took longer than Options.Lease
	ClassSlowKey            = "slow_key"            // it did not fail: its key was so slow that it held up its partition
)

// ErrNotFound is returned when no parked message has the given id.
var ErrNotFound = errors.New("no such parked message")

type kind int

const (
	transient kind = iota
	permanent
	retryAfter
	outage
	discard
	held // parked at once, and no try counts: only a deploy can help
)

// handlerError carries a handler's verdict beside the error it is about.
type handlerError struct {
	kind  kind
	class string
	after time.Duration
	stack string // of a panic
	sure  bool   // permanent whatever the handler is: no deploy would change it
	err   error
}

func (e *handlerError) Error() string { return e.err.Error() }
func (e *handlerError) Unwrap() error { return e.err }

// Permanent marks err as one that no retry can help: the message is dead at once.
func Permanent(err error) error { return PermanentAs(ClassPermanent, err) }

// PermanentAs is [Permanent] with a class, by which dead letters are grouped: "business_invalid".
func PermanentAs(class string, err error) error {
	if err == nil {
		return nil
	}
	return &handlerError{kind: permanent, class: class, err: err}
}

// WithClass gives err a class and leaves the rest of its verdict as it is: a plain error stays transient.
func WithClass(class string, err error) error {
	if err == nil {
		return nil
	}
	v := judge(err)
	return &handlerError{kind: v.kind, class: class, after: v.after, err: err}
}

// RetryAfter asks for the next try of the message not before d from now.
func RetryAfter(d time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return &handlerError{kind: retryAfter, class: classOf(err), after: d, err: err}
}

// Outage says that something every message needs is away. The consumer stops, probes with single messages until one
// succeeds, and goes on; no message is parked for it.
func Outage(err error) error {
	if err == nil {
		return nil
	}
	return &handlerError{kind: outage, class: "outage", err: err}
}

// Discard drops the message: what the handler wrote is rolled back, and the message is remembered as discarded.
func Discard(reason string) error {
	return &handlerError{kind: discard, class: "discarded", err: errors.New(reason)}
}

// judge reads the verdict in err. A connection error inside err outweighs what a handler made of it: a handler that
// wraps every error as permanent must not fill the dead letters when Postgres is away.
func judge(err error) handlerError {
	if databaseAway(err) {
		return handlerError{kind: outage, class: "outage", err: err}
	}
	v := handlerError{kind: transient, class: ClassTransient, err: err}
	if e, ok := errors.AsType[*handlerError](err); ok {
		v.kind, v.class, v.after, v.stack, v.sure = e.kind, e.class, e.after, e.stack, e.sure
	}
	return v
}

func classOf(err error) string {
	if e, ok := errors.AsType[*handlerError](err); ok {
		return e.class
	}
	return ClassTransient
}

// databaseAway reports whether err says that Postgres cannot be used now, by anyone.
func databaseAway(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		if len(pg.Code) != 5 {
			return false
		}
		switch pg.Code[:2] {
		case "08", "53", "58": // connection, resources (disk full, too many connections), system
			return true
		}
		switch pg.Code {
		case "57P01", "57P02", "57P03", "57P05", // shutdown, crash, starting up, idle session ended
			"25P03", // idle in transaction too long: this process was paused
			"25006": // read only: a standby
			return true
		}
		return false
	}
	_, ok := errors.AsType[*pgconn.ConnectError](err)
	return ok || errors.Is(err, errConnClosed)
}

// rerunnable reports whether the batch should simply run again: Postgres chose it as the victim.
func rerunnable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "40001" || pg.Code == "40P01")
}

func deadlocked(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "40P01"
}

// errConnClosed marks errors after which the connection was found closed. The error itself cannot tell: io.EOF is what
// a dead connection says, and what a JSON decoder says of an empty payload.
var errConnClosed = errors.New("database connection lost")

// callError marks an error of a handler after which tx's connection is gone.
func callError(tx pgx.Tx, err error) error {
	if err != nil && tx.Conn().IsClosed() {
		return fmt.Errorf("%w: %w", errConnClosed, err)
	}
	return err
}

// malformed is the consumer's own verdict on a message that no handler could apply.
func malformed(class string, err error) error {
	return &handlerError{kind: permanent, class: class, sure: true, err: err}
}

// panicError turns what a handler panicked with into an error.
func panicError(v any, stack []byte) error {
	return &handlerError{kind: transient, class: ClassHandlerPanic, stack: string(stack), err: fmt.Errorf("handler panicked: %v", v)}
}
