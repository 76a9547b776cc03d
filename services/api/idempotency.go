package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// placeTimeout bounds one run of the transaction, its COMMIT included.
	placeTimeout = 5 * time.Second
	// resolveLockTimeout bounds how long a second run waits for the first one's session to end.
	resolveLockTimeout = 3 * time.Second
	// retryInFlight is when a client may ask again about a request that is at work.
	retryInFlight = time.Second
)

// request is what makes two requests the same one.
type request struct {
	userID    string
	operation string
	key       string
	hash      [sha256.Size]byte // of what was asked for
}

// lockID is the advisory lock of the request's key. Two keys that share one only ever cost a 409.
func (r request) lockID() int64 {
	sum := sha256.Sum256([]byte(r.userID + "\x00" + r.operation + "\x00" + r.key))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// answer is a success, as it is stored and as it is sent again.
type answer struct {
	status   int
	location string
	etag     string
	body     []byte
}

// keeper runs requests so that one key has one effect.
//
// A key is locked in this process, then in Postgres, and its answer is stored in the transaction of its effect. A request
// that meets another one at work is told so at once: if it waited, every repeat of a slow request would hold a connection.
type keeper struct {
	pool    *pgxpool.Pool
	gate    slots
	log     *slog.Logger
	metrics *metrics

	mu   sync.Mutex
	busy map[request]bool // by key: the hash is left zero
}

func newKeeper(pool *pgxpool.Pool, gate slots, log *slog.Logger, m *metrics) *keeper {
	return &keeper{pool: pool, gate: gate, log: log, metrics: m, busy: map[request]bool{}}
}

var (
	errInFlight = newProblem(http.StatusConflict, kindInFlight, "A request with this Idempotency-Key is at work; ask again.").retry(retryInFlight)
	errReused   = newProblem(http.StatusUnprocessableEntity, kindKeyReused, "This Idempotency-Key was used for another request; take a new one.").
			at("header.Idempotency-Key", "was used for another request")
	errUnknown = newProblem(http.StatusServiceUnavailable, kindOutcomeUnknown,
		"It is not known whether this was done. Send the same request with the same Idempotency-Key to find out.").retry(time.Second)
)

// work is what a request has to do, in three round trips together with its key. It may run twice.
type work struct {
	// ahead queues reads that go with the lock of the key.
	ahead func(*pgx.Batch)
	// decide returns the answer, and queues the writes that go with the storing of it. Its error is passed on and nothing is
	// stored: the request may be tried again.
	decide func(*pgx.Batch) (answer, error)
	// finish does what needs the results of those writes.
	finish func(context.Context, pgx.Tx) error
}

// once does the work, unless req was answered before, and reports whether the answer is that earlier one.
//
// Once the work has begun the caller's context no longer counts: a client that goes away must not make the outcome unknown.
func (k *keeper) once(ctx context.Context, req request, do work) (a answer, replayed bool, err error) {
	free, ok := k.take(req)
	if !ok {
		return answer{}, false, errInFlight
	}
	defer free()
	leave, err := k.gate.enter()
	if err != nil {
		return answer{}, false, err
	}
	defer leave()
	ctx = context.WithoutCancel(ctx)
	a, replayed, err = k.run(ctx, req, false, do)
	var lost *lostCommit
	switch {
	case errors.As(err, &lost):
		k.log.WarnContext(ctx, "commit without an answer, running the request again under its key", slog.Any("error", lost.err))
		a, err = k.resolve(ctx, req, do)
		return a, false, err
	case errors.Is(err, errRaced):
		return k.run(ctx, req, true, do)
	}
	return a, replayed, err
}

// resolve runs a request again whose COMMIT may have worked. To the client the answer is new, whichever run it is from.
func (k *keeper) resolve(ctx context.Context, req request, do work) (answer, error) {
	a, replayed, err := k.run(ctx, req, true, do)
	var refused *problem
	switch {
	case err == nil && replayed:
		k.metrics.resolved(ctx, "had committed")
		return a, nil
	case err == nil:
		k.metrics.resolved(ctx, "committed now")
		return a, nil
	case errors.As(err, &refused):
		k.metrics.resolved(ctx, "refused")
		return answer{}, refused // the key was free, so the first run had not committed
	default:
		k.metrics.resolved(ctx, "still unknown")
		k.log.ErrorContext(ctx, "outcome of a commit is unknown, the client must ask again", slog.Any("error", err))
		return answer{}, errUnknown
	}
}

// take locks the key inside this process.
func (k *keeper) take(req request) (free func(), ok bool) {
	req.hash = [sha256.Size]byte{}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[req] {
		return nil, false
	}
	k.busy[req] = true
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.busy, req)
	}, true
}

// lostCommit says that COMMIT was sent and no answer came that tells what became of it.
type lostCommit struct{ err error }

func (l *lostCommit) Error() string { return "commit: " + l.err.Error() }
func (l *lostCommit) Unwrap() error { return l.err }

// errRaced says that the key's row appeared although the key was locked: the second wall held.
var errRaced = errors.New("idempotency key was stored by another transaction")

// run is one transaction. wait makes it wait for the key's lock instead of giving up.
func (k *keeper) run(ctx context.Context, req request, wait bool, do work) (answer, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	tx, err := k.pool.Begin(ctx)
	if err != nil {
		return answer{}, false, fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	stored, found, err := k.lock(ctx, tx, req, wait, do.ahead)
	if err != nil || found {
		return stored, found, err
	}
	writes := &pgx.Batch{}
	a, err := do.decide(writes)
	if err != nil {
		return answer{}, false, err
	}
	queueStore(writes, req, a)
	if err := tx.SendBatch(ctx, writes).Close(); err != nil {
		return answer{}, false, err
	}
	if err := do.finish(ctx, tx); err != nil {
		return answer{}, false, err
	}
	if err := tx.Commit(ctx); err != nil {
		if refusedCommit(err) {
			return answer{}, false, fmt.Errorf("commit: %w", err)
		}
		return answer{}, false, &lostCommit{err}
	}
	return a, false, nil
}

// lock locks the key until tx ends and returns the answer that is stored under it, if there is one. The statements go in
// one round trip; each has a snapshot of its own, so the second sees what was committed before the lock was taken.
func (k *keeper) lock(ctx context.Context, tx pgx.Tx, req request, wait bool, ahead func(*pgx.Batch)) (stored answer, found bool, err error) {
	batch := &pgx.Batch{}
	locked := true
	if wait {
		batch.Queue(`SELECT set_config('lock_timeout', $1, true)`, fmt.Sprintf("%dms", resolveLockTimeout.Milliseconds()))
		batch.Queue(`SELECT pg_advisory_xact_lock($1)`, req.lockID())
	} else {
		batch.Queue(`SELECT pg_try_advisory_xact_lock($1)`, req.lockID()).QueryRow(func(row pgx.Row) error {
			return row.Scan(&locked)
		})
	}
	var hash []byte
	batch.Queue(`
		SELECT request_hash, status, location, etag, body
		FROM idempotency_keys
		WHERE user_id = $1 AND operation = $2 AND key = $3`, req.userID, req.operation, req.key).
		QueryRow(func(row pgx.Row) error {
			err := row.Scan(&hash, &stored.status, &stored.location, &stored.etag, &stored.body)
			found = err == nil
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		})
	ahead(batch)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return answer{}, false, fmt.Errorf("lock idempotency key: %w", err)
	}
	switch {
	case found && [sha256.Size]byte(hash) != req.hash:
		return answer{}, false, errReused
	case found:
		return stored, true, nil // no lock needed: a stored answer does not change
	case !locked:
		return answer{}, false, errInFlight
	}
	return answer{}, false, nil
}

func queueStore(batch *pgx.Batch, req request, a answer) {
	batch.Queue(`
		INSERT INTO idempotency_keys (user_id, operation, key, request_hash, status, location, etag, body)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT DO NOTHING`,
		req.userID, req.operation, req.key, req.hash[:], a.status, a.location, a.etag, a.body,
	).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 {
			return errRaced
		}
		return nil
	})
}

// refusedCommit reports whether the error of a COMMIT proves that nothing was committed. Everything else, also an error of
// the server's own such as a shutdown, leaves it open.
func refusedCommit(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.Code[:min(2, len(refused.Code))] {
	case "23", // a deferred constraint
		"40": // serialization failure, deadlock; 40003 says that it is unknown
		return refused.Code != "40003"
	}
	return false
}
