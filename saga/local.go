package saga

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// runLocal runs one local step, compensation or end for all units that stand at it.
func (b *batch) runLocal(ctx context.Context, units []*unit) error {
	u := units[0]
	var (
		each LocalFunc
		all  LocalBatchFunc
	)
	switch u.act {
	case actLocal:
		each, all = u.s.spec().do, u.s.spec().doBatch
	case actUndo:
		each, all = u.s.spec().undo, u.s.spec().undoBatch
	default:
		each = endFunc(u.s.def)
	}
	if all != nil {
		return b.runTogether(ctx, units, all)
	}
	for _, u := range units {
		if b.savepoints >= maxSavepoints {
			u.again = true
			continue
		}
		do := each
		if u.act == actEnd && u.s.ended {
			do = func(context.Context, pgx.Tx, *Instance) error { return nil }
		}
		began := time.Now()
		failure, err := b.isolated(ctx, u, do)
		if err != nil {
			return err
		}
		b.metrics.took(ctx, u.s, u.act, failure, time.Since(began))
		b.outcome(ctx, u, failure)
	}
	return nil
}

func endFunc(d *Definition) LocalFunc {
	return func(ctx context.Context, tx pgx.Tx, in *Instance) error {
		if d.onFailed == nil {
			return nil
		}
		return d.onFailed(ctx, tx, in, in.Failure)
	}
}

// isolated runs do so that a failure takes back its own writes only. err is the database's: nothing can be kept.
func (b *batch) isolated(ctx context.Context, u *unit, do LocalFunc) (failure, err error) {
	in := u.s.in
	return b.savepoint(ctx, func(tx pgx.Tx) error { return do(ctx, tx, &in) })
}

// runTogether runs a set-based step. If it fails as a whole, each unit is tried in a transaction of its own, so that
// the failure finds the instance that it belongs to.
func (b *batch) runTogether(ctx context.Context, units []*unit, all LocalBatchFunc) error {
	ins := make([]*Instance, len(units))
	for i, u := range units {
		in := u.s.in
		ins[i] = &in
	}
	var errs []error
	began := time.Now()
	failure, err := b.savepoint(ctx, func(tx pgx.Tx) (err error) {
		if errs, err = all(ctx, tx, ins); err != nil {
			return err
		}
		if errs != nil && len(errs) != len(ins) {
			return Stuck(fmt.Errorf("the step returned %d outcomes for %d instances", len(errs), len(ins)))
		}
		for i, err := range errs {
			var (
				rejected *rejectedError
				stuck    *stuckError
			)
			if err != nil && !errors.As(err, &rejected) && !errors.As(err, &stuck) {
				return fmt.Errorf("instance %d of %d: %w", i+1, len(ins), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.metrics.took(ctx, units[0].s, units[0].act, failure, time.Since(began))
	switch {
	case failure != nil && len(units) > 1:
		for _, u := range units {
			u.again, u.t.solo = true, true
		}
		b.log.WarnContext(ctx, "batch failed, will run one by one", "step", units[0].s.in.Step, "instances", len(units), "error", failure)
		return nil
	case failure != nil:
		b.outcome(ctx, units[0], failure)
		return nil
	}
	for i, u := range units {
		if errs == nil {
			b.outcome(ctx, u, nil)
		} else {
			b.outcome(ctx, u, errs[i])
		}
	}
	return nil
}

// outcome brings what a local function returned into the draft.
func (b *batch) outcome(ctx context.Context, u *unit, failure error) {
	s := u.s
	b.metrics.step(ctx, s, u.act, failure)
	var (
		rejected *rejectedError
		stuck    *stuckError
	)
	switch {
	case failure == nil:
		b.succeeded(u)
	case errors.As(failure, &stuck):
		s.halt(haltError, clip(failure.Error()))
	case errors.As(failure, &rejected) && u.act == actLocal:
		s.put(s.step, false, entry{state: EntryRejected, attempt: s.in.Attempt + 1, intentAt: b.now, outcomeAt: b.now, err: clip(rejected.reason)})
		s.reject(FailedRejected, rejected.reason)
	case u.act == actLocal:
		s.failed(failure, b.opts.MaxAttempts, b.opts.backoff)
	default:
		s.failed(failure, b.opts.MaxUndoAttempts, b.opts.backoff)
	}
}

func (b *batch) succeeded(u *unit) {
	s := u.s
	if u.act == actEnd {
		s.in.State, s.ended = Compensated, true
		s.moveTo(-1)
		return
	}
	undo := u.act == actUndo
	s.put(s.step, undo, entry{state: EntrySucceeded, attempt: s.in.Attempt + 1, intentAt: b.now, outcomeAt: b.now})
	if undo {
		s.moveTo(s.step - 1)
		return
	}
	s.succeed()
}

// savepoint runs f under a savepoint that is only made if f touches the database: a step that computes costs nothing. One
// that did its work is released with the next one's begin, or by the commit.
func (b *batch) savepoint(ctx context.Context, f func(tx pgx.Tx) error) (failure, err error) {
	tx := &stepTx{Tx: b.tx, after: b.unreleased}
	failure = guard(func() error { return f(tx) })
	if tx.err != nil {
		return nil, tx.err
	}
	if !tx.open {
		if failure != nil && (b.tx.Conn().IsClosed() || infrastructure(failure)) {
			return nil, failure
		}
		return failure, nil
	}
	b.savepoints++
	if failure == nil {
		if b.tx.Conn().PgConn().TxStatus() == 'T' {
			b.unreleased = `RELEASE SAVEPOINT saga_step; `
			return nil, nil
		}
		failure = errors.New("the step went on after an error of the database")
	}
	if b.tx.Conn().IsClosed() || infrastructure(failure) {
		return nil, failure
	}
	b.unreleased = ""
	if _, err := b.tx.Exec(ctx, `ROLLBACK TO SAVEPOINT saga_step; RELEASE SAVEPOINT saga_step`); err != nil {
		return nil, fmt.Errorf("take a step back: %w", err)
	}
	return failure, nil
}

// guard makes an error of a panic. A participant's bug costs its own instance, not the engine.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v at %s", p, origin(debug.Stack()))
		}
	}()
	return f()
}

// origin is the function that panicked: the frame below panic's own.
func origin(stack []byte) string {
	_, after, ok := strings.Cut(string(stack), "\npanic(")
	if !ok {
		return "unknown"
	}
	lines := strings.SplitN(after, "\n", 4)
	if len(lines) < 3 {
		return "unknown"
	}
	return lines[2]
}

// SQLSTATEs that are more than a condition to wait for.
const (
	deadlockDetected = "40P01"
	lockTimeout      = "55P03"
	statementTimeout = "57014"
)

// infrastructure reports whether an error is the database's condition rather than the step's: it is tried again and not
// counted.
func infrastructure(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case lockTimeout, "25006", "25P03": // read-only after a fail-over, idle in transaction
			return true
		}
		switch pgErr.Code[:min(2, len(pgErr.Code))] {
		case "08", "40", "53", "57", "58": // connection, rollback, resources, intervention, system
			return true
		}
		return false
	}
	var connectErr *pgconn.ConnectError
	return errors.As(err, &connectErr) || pgconn.SafeToRetry(err) ||
		errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, io.ErrUnexpectedEOF)
}

// waitedInVain reports whether a statement was given up after its time: most often for a row that a person's open
// transaction keeps locked. It is not counted, as any condition of the database, but it may be one instance's alone.
func waitedInVain(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == lockTimeout || pgErr.Code == statementTimeout)
}

// stepTx is the transaction as a step sees it.
type stepTx struct {
	pgx.Tx
	after string // what has to come before the savepoint
	open  bool
	err   error
}

var errStepEndsTx = errors.New("saga: a step may not end the transaction it shares")

func (t *stepTx) begin(ctx context.Context) error {
	if t.open || t.err != nil {
		return t.err
	}
	if _, err := t.Tx.Exec(ctx, t.after+`SAVEPOINT saga_step`); err != nil {
		t.err = fmt.Errorf("savepoint: %w", err)
		return t.err
	}
	t.open = true
	return nil
}

func (t *stepTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	return t.Tx.Begin(ctx)
}

func (t *stepTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := t.begin(ctx); err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.Tx.Exec(ctx, sql, args...)
}

func (t *stepTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	_ = t.begin(ctx) // what is wrong with the transaction is the query's error too
	return t.Tx.Query(ctx, sql, args...)
}

func (t *stepTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	_ = t.begin(ctx)
	return t.Tx.QueryRow(ctx, sql, args...)
}

func (t *stepTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	_ = t.begin(ctx)
	return t.Tx.SendBatch(ctx, b)
}

func (t *stepTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if err := t.begin(ctx); err != nil {
		return 0, err
	}
	return t.Tx.CopyFrom(ctx, table, columns, src)
}

func (t *stepTx) Commit(context.Context) error   { return errStepEndsTx }
func (t *stepTx) Rollback(context.Context) error { return errStepEndsTx }
