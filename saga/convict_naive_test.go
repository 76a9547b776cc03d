package saga_test

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// naive carries the trip as people write it by hand: a row that says what is done and what is to be undone, a loop around
// the charge, one context for the whole. Without a vice it is sound, for one trip under the schedules of this test.
type naive struct {
	*trial
	undoAfterSuccess bool // the undo is registered with the success, not with the intent
	keyPerAttempt    bool
	timeoutIsNo      bool // who does not answer has declined
	undoOnItsContext bool // and not on one of its own, so a cancel ends it too
	unfenced         bool // who goes on after a pause writes
}

var (
	errDeclinedTrip = errors.New("declined")
	errTakenOver    = errors.New("another process has the trip")
)

func (n *naive) begin(x *trial) {
	n.trial = x
	_, err := x.pool.Exec(x.Context(), `
		CREATE TABLE naive (id uuid PRIMARY KEY, owner int NOT NULL DEFAULT 0, done text[] NOT NULL DEFAULT '{}',
			undo text[] NOT NULL DEFAULT '{}', cancelled bool NOT NULL DEFAULT false, over bool NOT NULL DEFAULT false)`)
	if err == nil {
		_, err = x.pool.Exec(x.Context(), `INSERT INTO naive (id) VALUES ($1)`, x.in.ID)
	}
	if err != nil {
		x.Fatal(err)
	}
}

func (n *naive) cancel() {
	if _, err := n.pool.Exec(n.Context(), `UPDATE naive SET cancelled = true`); err != nil {
		n.Error(err)
	}
}

// expire has nothing to do: run takes the trip from whoever has it.
func (n *naive) expire() {}

// held is the trip in the hands of one process.
type held struct {
	*naive
	owner      int
	done, undo []string
}

func (n *naive) run(ctx context.Context) error {
	h := held{naive: n}
	var cancelled, over bool
	err := n.pool.QueryRow(ctx, `UPDATE naive SET owner = owner + 1 RETURNING owner, done, undo, cancelled, over`).
		Scan(&h.owner, &h.done, &h.undo, &cancelled, &over)
	if err != nil || over {
		return err
	}
	err = errDeclinedTrip
	if !cancelled {
		err = h.forward(ctx)
	}
	if err == nil || errors.Is(err, crash.ErrKilled) {
		return err
	}
	if !errors.Is(err, errTakenOver) {
		err = h.back(ctx)
	}
	if errors.Is(err, errTakenOver) {
		return nil
	}
	return err
}

func (h *held) forward(ctx context.Context) error {
	if !slices.Contains(h.done, "seat") {
		if err := h.commit(ctx, `done = done || '{seat}', undo = undo || '{seat}'`, batchOfOne(hold)); err != nil {
			return err
		}
	}
	if !slices.Contains(h.done, "charge") {
		const registered = `undo = undo || '{charge}'`
		if !h.undoAfterSuccess && !slices.Contains(h.undo, "charge") {
			if err := h.commit(ctx, registered, nothing); err != nil {
				return err
			}
			h.undo = append(h.undo, "charge")
		}
		if err := h.charge(ctx); err != nil {
			return err
		}
		set := `done = done || '{charge}'`
		if h.undoAfterSuccess {
			set += ", " + registered
		}
		if err := h.commit(ctx, set, nothing); err != nil {
			return err
		}
	}
	return h.commit(ctx, `over = true`, confirm)
}

func (h *held) charge(ctx context.Context) error {
	key := h.in.ID.String()
	for {
		if h.keyPerAttempt {
			key = uuid.NewString()
		}
		if h.found(key) {
			return nil
		}
		h.p.create(key)
		err := h.p.confirm(key)
		if dead := crash.At(ctx, crash.AfterCall, "call charge"); dead != nil {
			return dead
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errTimeout):
			return err
		case h.timeoutIsNo:
			h.undo = slices.DeleteFunc(h.undo, func(step string) bool { return step == "charge" }) // nothing to refund
			return errDeclinedTrip
		}
	}
}

func (h *held) found(key string) bool {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	in := h.p.intents[key]
	return in != nil && in.charged
}

// back takes the trip back as far as it is registered. Who undoes on the context that was cancelled has nobody left to tell
// that it failed, and calls the trip over.
func (h *held) back(ctx context.Context) error {
	own := context.WithoutCancel(ctx)
	if !h.undoOnItsContext {
		ctx = own
	}
	err := ctx.Err() // as a client of HTTP would return it
	if err == nil && slices.Contains(h.undo, "charge") {
		err = h.p.refund(ctx, nil, &saga.Call{ActionKey: h.in.ID.String()})
	}
	if err == nil {
		err = h.commit(ctx, `undo = '{}'`, batchOfOne(release))
	}
	if err != nil && !h.undoOnItsContext {
		return err
	}
	return h.commit(own, `over = true`, func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		return failed(ctx, tx, in, saga.Failure{})
	})
}

// commit changes the trip's row and runs a step, if the trip is still this process's.
func (h *held) commit(ctx context.Context, set string, step saga.LocalFunc) error {
	return pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE naive SET `+set+` WHERE owner = $1 OR $2`, h.owner, h.unfenced)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errTakenOver
		}
		return step(ctx, tx, &saga.Instance{ID: h.in.ID})
	})
}

func nothing(context.Context, pgx.Tx, *saga.Instance) error { return nil }

func batchOfOne(step saga.LocalBatchFunc) saga.LocalFunc {
	return func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		_, err := step(ctx, tx, []*saga.Instance{in})
		return err
	}
}
