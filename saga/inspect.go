package saga

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Status is the health of all sagas in a schema.
type Status struct {
	States        map[State]int // live instances; finished ones are not counted
	Overdue       int           // lanes that should have run more than a minute ago
	OldestOverdue time.Duration
	OldestInDoubt time.Duration
	OldestStuck   time.Duration
}

// Inspect counts what is live. It reads every live instance once.
func Inspect(ctx context.Context, db Querier) (Status, error) {
	st := Status{States: map[State]int{}}
	rows, _ := db.Query(ctx, `
		SELECT state, count(*), coalesce(extract(epoch FROM clock_timestamp() - min(updated_at)), 0)::float8
		FROM saga_instances WHERE finished_at IS NULL GROUP BY state`)
	var (
		state State
		n     int
		age   float64
	)
	_, err := pgx.ForEachRow(rows, []any{&state, &n, &age}, func() error {
		st.States[state] = n
		if state == InDoubt {
			st.OldestInDoubt = seconds(age)
		}
		if state == StuckState {
			st.OldestStuck = seconds(age)
		}
		return nil
	})
	if err != nil {
		return st, fmt.Errorf("inspect sagas: %w", err)
	}
	rows, _ = db.Query(ctx, `
		SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(run_at)), 0)::float8
		FROM saga_lanes WHERE run_at < clock_timestamp() - interval '1 minute'`)
	_, err = pgx.ForEachRow(rows, []any{&st.Overdue, &age}, func() error {
		st.OldestOverdue = seconds(age)
		return nil
	})
	if err != nil {
		return st, fmt.Errorf("inspect lanes: %w", err)
	}
	return st, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Filter narrows [List]. The zero value is every live instance.
type Filter struct {
	State State
	Lane  string
	// Finished includes instances that have ended, if State is empty.
	Finished bool
	// Limit bounds the answer. Default 100.
	Limit int
}

// List returns instances, oldest first.
func List(ctx context.Context, db Querier, f Filter) ([]Instance, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	rows, _ := db.Query(ctx, `
		SELECT `+instanceColumns+` FROM saga_instances
		WHERE ($1 = '' OR state = $1) AND ($2 = '' OR lane = $2) AND ($3 OR $1 <> '' OR finished_at IS NULL)
		ORDER BY n
		LIMIT $4`, string(f.State), f.Lane, f.Finished, f.Limit)
	states, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, fmt.Errorf("list sagas: %w", err)
	}
	ins := make([]Instance, len(states))
	for i, s := range states {
		ins[i] = s.in
	}
	return ins, nil
}

// History is one instance with what it did, in order.
type History struct {
	Instance Instance
	Journal  []Entry
	Audit    []Audit
}

// Entry is one step of the journal, done or undone. What steps saved and returned is left out: it may hold what should
// not be shown.
type Entry struct {
	Step      string
	Undo      bool
	State     EntryState
	Attempt   int
	Key       string
	IntentAt  time.Time
	OutcomeAt time.Time // zero while the outcome is unknown
	Error     string
}

// Audit is one intervention.
type Audit struct {
	At     time.Time
	Action string
	By     string
	Reason string
	Was    State
}

// Load returns one instance with its journal, or [ErrNotFound].
func Load(ctx context.Context, db Querier, id uuid.UUID) (*History, error) {
	rows, _ := db.Query(ctx, `SELECT `+instanceColumns+` FROM saga_instances WHERE id = $1`, id)
	states, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, fmt.Errorf("load saga %s: %w", id, err)
	}
	if len(states) == 0 {
		return nil, fmt.Errorf("load saga %s: %w", id, ErrNotFound)
	}
	h := &History{Instance: states[0].in}
	rows, _ = db.Query(ctx, `
		SELECT name, undo, state, attempt, coalesce(key, ''), intent_at, coalesce(outcome_at, '0001-01-01Z'), coalesce(error, '')
		FROM saga_journal WHERE saga_id = $1
		ORDER BY undo, CASE WHEN undo THEN -step ELSE step END`, id)
	if h.Journal, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Entry]); err != nil {
		return nil, fmt.Errorf("load journal of saga %s: %w", id, err)
	}
	rows, _ = db.Query(ctx, `
		SELECT at, action, actor, reason, was FROM saga_audit WHERE saga_id = $1 ORDER BY id`, id)
	if h.Audit, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Audit]); err != nil {
		return nil, fmt.Errorf("load audit of saga %s: %w", id, err)
	}
	return h, nil
}

// liveVersions counts live instances by definition.
func liveVersions(ctx context.Context, db Querier) (map[defKey]int, error) {
	rows, _ := db.Query(ctx, `
		SELECT definition, version, count(*) FROM saga_instances WHERE finished_at IS NULL GROUP BY definition, version`)
	live := map[defKey]int{}
	var (
		k defKey
		n int
	)
	_, err := pgx.ForEachRow(rows, []any{&k.name, &k.version, &n}, func() error {
		live[k] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count live sagas: %w", err)
	}
	return live, nil
}
