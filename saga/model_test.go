package saga_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/orderflow-dev/orderflow/saga"
)

// drawn is one random step of a definition: its kind, and what each try of it does.
type drawn struct {
	remote, together bool
	certain          bool // the other side knows for certain what it has not done
	undo, pivot      bool
	tries            []string // "ok", "reject", "error", "unknown", "late", "not sent", "panic"; ok when there are no more
	undoFails        int
}

// world is what the steps have done: the model's prediction and the participants' record have this form.
type world struct {
	state saga.State
	done  []string // effects that stand, in the order in which they were made
}

// predict is the whole model: the first rejection at or before the pivot takes back what can be taken back.
func predict(steps []drawn) world {
	w := world{state: saga.Completed}
	for i, s := range steps {
		if slices.Contains(s.tries, "reject") {
			var kept []string
			for j := range i {
				if !steps[j].undo {
					kept = append(kept, stepName(j))
				}
			}
			return world{saga.Compensated, kept}
		}
		w.done = append(w.done, stepName(i))
	}
	return w
}

func stepName(i int) string { return fmt.Sprintf("step %d", i) }

func drawSteps(t *rapid.T) []drawn {
	n := rapid.IntRange(1, 5).Draw(t, "steps")
	pivot := rapid.IntRange(0, n).Draw(t, "pivot")
	steps := make([]drawn, n)
	for i := range steps {
		s := drawn{remote: rapid.Bool().Draw(t, "remote"), together: rapid.Bool().Draw(t, "together"), pivot: i == pivot}
		s.undo = i < pivot && (s.remote || rapid.Bool().Draw(t, "undo"))
		failures := []string{"error", "panic"}
		if s.remote {
			s.certain = rapid.Bool().Draw(t, "certain")
			failures = []string{"unknown", "unknown but done", "not sent", "panic"}
		}
		s.tries = rapid.SliceOfN(rapid.SampledFrom(failures), 0, 3).Draw(t, "tries")
		if i <= pivot && rapid.IntRange(0, 5).Draw(t, "rejects") == 0 && !slices.Contains(s.tries, "unknown but done") {
			s.tries = append(s.tries, "reject")
		}
		s.undoFails = rapid.IntRange(0, 2).Draw(t, "undo fails")
		steps[i] = s
	}
	return steps
}

// participants carry out what was drawn, and keep the record of it. Effects of local steps count when they commit, so
// they are rows; those of remote steps are kept here.
type participants struct {
	mu    sync.Mutex
	steps []drawn
	tries []int
	undos []int
	calls []string // keys of those whose effect stands
	known []string // keys of all that were ever carried out
	late  []int    // steps whose call is under way still

	forgotten map[string]bool // keys whose window is over
	resent    []string        // those of them that came again
}

func newParticipants(steps []drawn) *participants {
	return &participants{steps: steps, tries: make([]int, len(steps)), undos: make([]int, len(steps)), forgotten: map[string]bool{}}
}

// carryOut does what a call asks for, once per key. p.mu is held.
func (p *participants) carryOut(key string) {
	if !slices.Contains(p.known, key) {
		p.known, p.calls = append(p.known, key), append(p.calls, key)
	}
}

func (p *participants) next(i int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.tries[i]
	if n >= len(p.steps[i].tries) {
		return "ok"
	}
	what := p.steps[i].tries[n]
	// A no is for good, also for an engine that did not hear the first one. A call that is under way is so for every try.
	if what != "reject" && what != "late" {
		p.tries[i]++
	}
	return what
}

func (p *participants) failUndo(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.undos[i]++
	return p.undos[i] <= p.steps[i].undoFails
}

func (p *participants) local(i int) saga.LocalFunc {
	return func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		if _, err := tx.Exec(ctx, `INSERT INTO effects (saga_id, step) VALUES ($1, $2)`, in.ID, i); err != nil {
			return err
		}
		switch p.next(i) {
		case "reject":
			return saga.Rejected("drawn")
		case "error":
			return errors.New("drawn")
		case "panic":
			panic("drawn")
		}
		return nil
	}
}

func (p *participants) localUndo(i int) saga.LocalFunc {
	return func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		tag, err := tx.Exec(ctx, `DELETE FROM effects WHERE saga_id = $1 AND step = $2`, in.ID, i)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return saga.Stuck(fmt.Errorf("undo of step %d, which had no effect", i))
		}
		if p.failUndo(i) {
			return errors.New("drawn")
		}
		return nil
	}
}

func (p *participants) call(i int) saga.RemoteFunc {
	return func(_ context.Context, _ *saga.Instance, call *saga.Call) (any, error) {
		what := p.next(i)
		p.mu.Lock()
		if p.forgotten[call.Key] {
			p.resent = append(p.resent, call.Key)
		}
		switch what {
		case "ok", "unknown but done":
			p.carryOut(call.Key)
		case "late":
			if !slices.Contains(p.late, i) {
				p.late = append(p.late, i)
			}
		}
		p.mu.Unlock()
		switch what {
		case "reject":
			return nil, saga.Rejected("drawn")
		case "not sent":
			return nil, saga.NotSent(errors.New("drawn"))
		case "panic":
			panic("drawn")
		case "ok":
			return nil, nil
		}
		return nil, errTimeout
	}
}

func (p *participants) find(i int) saga.QueryFunc {
	return func(_ context.Context, _ *saga.Instance, call *saga.Call) (saga.Answer, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case slices.Contains(p.calls, call.Key):
			return saga.FoundSucceeded(nil), nil
		case p.steps[i].certain && !slices.Contains(p.late, i):
			return saga.NeverExisted(), nil
		}
		return saga.NotYet(), nil
	}
}

func (p *participants) callUndo(i int) saga.UndoFunc {
	return func(_ context.Context, _ *saga.Instance, call *saga.Call) error {
		if p.failUndo(i) {
			return errors.New("drawn")
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.calls = slices.DeleteFunc(p.calls, func(key string) bool { return key == call.ActionKey })
		return nil
	}
}

func (p *participants) definition(name string) *saga.Definition {
	var steps []saga.Step
	for i, s := range p.steps {
		if s.remote {
			step := saga.Remote(stepName(i), p.call(i)).Query(p.find(i)).Timeout(time.Second)
			if s.undo {
				step.Undo(p.callUndo(i))
			}
			if s.pivot {
				step.Pivot()
			}
			steps = append(steps, step)
			continue
		}
		step := saga.Local(stepName(i), p.local(i))
		if s.together {
			step = saga.LocalBatch(stepName(i), each(p.local(i)))
		}
		if s.undo {
			step.Undo(p.localUndo(i))
		}
		if s.pivot {
			step.Pivot()
		}
		steps = append(steps, step)
	}
	return saga.Define(name, 1, steps...)
}

// each makes a batch step of a single one. A rejected instance must not be written: it is taken back here.
func each(do saga.LocalFunc) saga.LocalBatchFunc {
	return func(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
		errs := make([]error, len(in))
		for i := range in {
			errs[i] = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return do(ctx, tx, in[i]) })
		}
		return errs, nil
	}
}

func TestEngineAgreesWithTheModel(t *testing.T) {
	t.Parallel()
	pool := database(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE effects (saga_id uuid, step int, PRIMARY KEY (saga_id, step))`); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		steps := drawSteps(rt)
		p := newParticipants(steps)
		id := uuid.Must(uuid.NewV7())
		in := saga.NewInstance{ID: id, Lane: id.String(), Definition: id.String(), Version: 1}
		start(t, pool, in)
		stop := engine(t, pool, quick(), p.definition(id.String()))
		until(t, "the saga has ended", func() bool {
			s := load(t, pool, id).Instance.State
			return s.Final() || s == saga.StuckState
		})
		stop()
		h := load(t, pool, id)
		got := world{state: h.Instance.State}
		for i, s := range steps {
			effects := count(t, pool, `SELECT count(*) FROM effects WHERE saga_id = $1 AND step = $2`, id, i)
			if s.remote && slices.Contains(p.calls, fmt.Sprintf("%s:step-%d:1", id, i)) {
				effects++
			}
			for range effects {
				got.done = append(got.done, stepName(i))
			}
		}
		if diff := cmp.Diff(predict(steps), got, cmp.AllowUnexported(world{})); diff != "" {
			rt.Fatalf("steps %+v\njournal %s, error %q\n(-want +got):\n%s", steps, journal(h), h.Instance.Error, diff)
		}
	})
}
