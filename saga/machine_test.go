package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/internal/crash"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

// machine is a saga of a random definition to which everything happens that can, between the deaths of its engines.
type machine struct {
	t    *testing.T // of the whole test: for what must not fail
	pool *pgxpool.Pool
	p    *participants
	def  *saga.Definition
	id   uuid.UUID

	// What happened, which is the model: from it follows where the saga may end and what must be left in the world.
	happened map[saga.FailureKind]bool
	mustTurn bool // an operator turned it round
	commands []string
}

// Whatever happens in whatever order, a saga ends where something that happened let it end, its effects are those of the
// steps that stand, and each command of an operator that was obeyed is on record.
func TestAnythingMayHappenToASaga(t *testing.T) {
	t.Parallel()
	pool := database(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE effects (saga_id uuid, step int, PRIMARY KEY (saga_id, step))`); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		steps := drawSteps(rt)
		m := &machine{
			t: t, pool: pool, id: uuid.Must(uuid.NewV7()), happened: map[saga.FailureKind]bool{},
			p: newParticipants(steps),
		}
		for i, s := range steps {
			m.happened[saga.FailedRejected] = m.happened[saga.FailedRejected] || slices.Contains(s.tries, "reject")
			// A call that is carried out late; not in a step that is refused, or the draw would not say which comes first.
			if s.remote && !slices.Contains(s.tries, "reject") && rapid.Bool().Draw(rt, "late") {
				steps[i].tries = append(steps[i].tries, "late")
			}
		}
		m.def = m.p.definition(m.id.String()).OnFailed(func(ctx context.Context, tx pgx.Tx, in *saga.Instance, _ saga.Failure) error {
			_, err := tx.Exec(ctx, `INSERT INTO effects (saga_id, step) VALUES ($1, -1)`, in.ID) // told once, or a key is there twice
			return err
		})
		start(t, pool, saga.NewInstance{ID: m.id, Lane: m.id.String(), Definition: m.id.String(), Version: 1})
		rt.Repeat(map[string]func(*rapid.T){
			"an engine runs":           func(*rapid.T) { m.run(0) },
			"an engine dies":           func(rt *rapid.T) { m.run(rapid.IntRange(1, 9).Draw(rt, "point")) },
			"cancel":                   func(*rapid.T) { m.cancel() },
			"deadline":                 func(*rapid.T) { m.deadline() },
			"the key window ends":      func(*rapid.T) { m.forget() },
			"a late call is heard of":  func(*rapid.T) { m.arrive() },
			"retry":                    func(*rapid.T) { m.command("retry", saga.Retry) },
			"compensate":               func(*rapid.T) { m.compensate() },
			"resolve what is in doubt": func(*rapid.T) { m.resolve() },
			"skip":                     func(*rapid.T) { m.command("skip", saga.Skip) },
		})
		m.end()
		if wrong := m.judge(); wrong != "" {
			h := m.load()
			rt.Fatalf("%s\nsteps %+v\nhappened %v, commands %v\ninstance %+v\njournal %s\naudit %+v", wrong, steps, m.happened, m.commands, h.Instance, journal(h), h.Audit)
		}
	})
}

func (m *machine) load() *saga.History { return load(m.t, m.pool, m.id) }

// run runs an engine until the saga is at rest or waits for a call that is late, or until it dies at its n-th point.
func (m *machine) run(n int) {
	var points atomic.Int32
	ctx, stop := context.WithCancel(crash.With(m.t.Context(), func(crash.Kind, string) bool {
		return int(points.Add(1)) == n
	}))
	defer stop()
	opts := quick()
	opts.MaxAttempts, opts.MaxUndoAttempts = 2, 2
	e, err := saga.NewEngine(m.pool, []*saga.Definition{m.def}, opts)
	if err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	dead := false
	until(m.t, "the saga is at rest, or its engine dead", func() bool {
		select {
		case err = <-ended:
			dead = true
			return true
		default:
			s := m.load().Instance.State
			return s.Final() || s == saga.StuckState || s == saga.InDoubt || points.Load() > 60
		}
	})
	stop()
	if !dead {
		err = <-ended
	}
	if err != nil && !errors.Is(err, crash.ErrKilled) {
		m.t.Fatal(err)
	}
	sagatest.Expire(m.t.Context(), m.t, m.pool)
}

func (m *machine) cancel() {
	inTx(m.t, m.pool, func(tx pgx.Tx) error { return saga.RequestCancel(m.t.Context(), tx, m.id) })
	m.happened[saga.FailedCancelled] = true
}

func (m *machine) deadline() {
	passDeadline(m.t, m.pool, m.id)
	m.happened[saga.FailedDeadline] = true
}

// forget makes every call older than the other side's memory.
func (m *machine) forget() {
	rows, _ := m.pool.Query(m.t.Context(), `
		UPDATE saga_journal SET key_since = key_since - interval '1 day'
		WHERE saga_id = $1 AND NOT undo AND key_since IS NOT NULL
		RETURNING key`, m.id)
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		m.t.Fatal(err)
	}
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	for _, key := range keys {
		m.p.forgotten[key] = true
	}
}

// arrive carries out the calls that are still on their way, and a webhook tells the saga.
func (m *machine) arrive() {
	m.p.mu.Lock()
	late := m.p.late
	m.p.late = nil
	for _, i := range late {
		m.p.carryOut(m.key(i))
		m.p.tries[i]++
	}
	m.p.mu.Unlock()
	for _, i := range late {
		inTx(m.t, m.pool, func(tx pgx.Tx) error {
			return saga.Settle(m.t.Context(), tx, m.id, stepName(i), saga.FoundSucceeded(nil))
		})
	}
}

func (m *machine) key(i int) string {
	return fmt.Sprintf("%s:%s:1", m.id, strings.ReplaceAll(stepName(i), " ", "-"))
}

// command gives an operator's command, and reports whether it was obeyed.
func (m *machine) command(action string, act func(context.Context, pgx.Tx, uuid.UUID, saga.Operator) error) bool {
	op := saga.Operator{By: "ops", Reason: fmt.Sprintf("%s, number %d", action, len(m.commands)+1), Rev: m.load().Instance.Rev}
	err := pgx.BeginFunc(m.t.Context(), m.pool, func(tx pgx.Tx) error { return act(m.t.Context(), tx, m.id, op) })
	if err != nil && !errors.Is(err, saga.ErrConflict) {
		m.t.Fatal(err)
	}
	if err == nil {
		m.commands = append(m.commands, op.Reason)
	}
	return err == nil
}

func (m *machine) compensate() {
	if m.command("compensate", saga.Compensate) {
		m.happened[saga.FailedOperator], m.mustTurn = true, true
	}
}

// resolve tells the saga the truth about the call that it stands at, as far as a person can know it.
func (m *machine) resolve() {
	i := m.step(m.load().Instance.Step)
	if i < 0 {
		return
	}
	m.p.mu.Lock()
	did, underWay := slices.Contains(m.p.calls, m.key(i)), slices.Contains(m.p.late, i)
	m.p.mu.Unlock()
	if !did && underWay && !m.p.steps[i].undo {
		return // nobody could take back what a wrong word would leave behind
	}
	obeyed := m.command("resolve", func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
		return saga.Resolve(ctx, tx, id, saga.Resolution{Happened: did, Result: json.RawMessage(`null`)}, op)
	})
	m.happened[saga.FailedOperator] = m.happened[saga.FailedOperator] || obeyed && !did
	if obeyed && !did {
		m.p.mu.Lock()
		defer m.p.mu.Unlock()
		delete(m.p.forgotten, m.key(i)) // on a person's word it may be sent again
	}
}

// step is the index of a step, or -1.
func (m *machine) step(name string) int {
	for i := range m.p.steps {
		if stepName(i) == name {
			return i
		}
	}
	return -1
}

// end lets the world come to rest: what is late arrives, and a person settles what needs one.
func (m *machine) end() {
	for range 60 {
		m.arrive()
		m.run(0)
		switch s := m.load().Instance.State; {
		case s == saga.StuckState:
			m.command("retry", saga.Retry)
		case s == saga.InDoubt:
			m.resolve()
		case s.Final() && len(m.p.late) == 0:
			return
		}
	}
}

func (m *machine) judge() string {
	h := m.load()
	in := h.Instance
	turned := in.State == saga.Compensated
	switch {
	case !in.State.Final():
		return "the saga does not come to its end"
	case turned && !m.happened[in.Failure.Kind]:
		return fmt.Sprintf("it was compensated because of %q, which never happened", in.Failure.Kind)
	case m.mustTurn && !turned:
		return "an operator turned it round, and it completed"
	case len(m.p.resent) > 0:
		return fmt.Sprintf("%v were sent again outside of the key window", m.p.resent)
	}
	skipped, passed := map[string]bool{}, map[string]bool{}
	for _, e := range h.Journal {
		skipped[e.Step] = skipped[e.Step] || e.State == saga.EntrySkipped
		passed[e.Step] = passed[e.Step] || !e.Undo && (e.State == saga.EntrySucceeded || e.State == saga.EntrySkipped)
	}
	end := m.step(in.Failure.Step)
	for i, s := range m.p.steps {
		want := 1
		switch {
		case turned && s.pivot && passed[stepName(i)]:
			return fmt.Sprintf("it was turned round (%s) after its pivot, %s", in.Failure.Kind, stepName(i))
		case skipped[stepName(i)]:
			continue // done by hand, or not
		case !turned && slices.Contains(s.tries, "reject"):
			return fmt.Sprintf("it completed, though %s was refused", stepName(i))
		case turned && (i >= end || s.undo):
			want = 0
		}
		if got := m.effects(i); got != want {
			return fmt.Sprintf("%s has %d effects, want %d", stepName(i), got, want)
		}
	}
	told := count(m.t, m.pool, `SELECT count(*) FROM effects WHERE saga_id = $1 AND step = -1`, m.id)
	if (told == 1) != turned {
		return fmt.Sprintf("the failure was told %d times of a saga that is %s", told, in.State)
	}
	var obeyed []string
	for _, a := range h.Audit {
		if a.Action != "late" {
			obeyed = append(obeyed, a.Reason)
		}
	}
	if !slices.Equal(obeyed, m.commands) {
		return fmt.Sprintf("the audit has the commands %q, want %q", obeyed, m.commands)
	}
	if n := count(m.t, m.pool, `SELECT count(*) FROM saga_lanes WHERE lane = $1 AND (pending <> 0 OR run_at IS NOT NULL)`, m.id.String()); n != 0 {
		return "its lane is not at rest"
	}
	return ""
}

// effects counts those of a step that stand.
func (m *machine) effects(i int) int {
	n := count(m.t, m.pool, `SELECT count(*) FROM effects WHERE saga_id = $1 AND step = $2`, m.id, i)
	if slices.Contains(m.p.calls, m.key(i)) {
		n++
	}
	return n
}
