package saga

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// task is a claimed lane with the instance that heads it.
type task struct {
	claim
	s     *state
	ev    *event
	until time.Time // this process's clock: when the lease may end
	solo  bool      // runs in a transaction of its own
	// suspect: engines died at it. It is on trial while no other suspect is, and counted before it runs or calls.
	suspect bool
	tries   int // infrastructure failures in a row
}

// suspectFrom is how many engines must have died while they held an instance to make it a suspect.
const suspectFrom = 2

// claimed is what one look for work brought.
type claimed struct {
	lanes   []string
	byLane  map[string]claim
	crashed map[string]bool // an engine went silent while it held the lane
	last    time.Time       // highest run_at claimed
	now     time.Time       // the database's clock
}

// claimLanes takes up to limit lanes that are due. floor leaves out what lies behind it in the index: entries of lanes
// taken earlier that vacuum has not removed yet.
func (e *Engine) claimLanes(ctx context.Context, floor time.Time, limit int) (*claimed, error) {
	token := uuid.New()
	rows, _ := e.pool.Query(ctx, `
		WITH due AS (
			SELECT lane, run_at, token FROM saga_lanes
			WHERE run_at BETWEEN $1 AND now()
			ORDER BY run_at
			LIMIT $2
			FOR UPDATE SKIP LOCKED
		)
		UPDATE saga_lanes l
		SET run_at = now() + $3::interval, token = $4, rev = l.rev + 1
		FROM due WHERE l.lane = due.lane
		RETURNING l.lane, l.rev, due.run_at, due.token IS NOT NULL, now()`,
		pgtype.Timestamptz{Time: floor, Valid: true}, limit, e.opts.Lease, token)
	c := &claimed{byLane: map[string]claim{}, crashed: map[string]bool{}}
	var (
		lane    string
		rev     int64
		runAt   time.Time
		crashed bool
	)
	_, err := pgx.ForEachRow(rows, []any{&lane, &rev, &runAt, &crashed, &c.now}, func() error {
		c.lanes = append(c.lanes, lane)
		c.byLane[lane] = claim{lane, token, rev}
		if crashed {
			c.crashed[lane] = true
		}
		if runAt.After(c.last) {
			c.last = runAt
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim lanes: %w", err)
	}
	return c, nil
}

const instanceColumns = `id, lane, definition, version, data, state, step_name, attempt,
	coalesce(failure_kind, ''), coalesce(failure_step, ''), coalesce(failure_reason, ''), coalesce(error, ''), rev,
	cancel_requested_at IS NOT NULL, forward_only, created_at, started_at, deadline_at, updated_at, finished_at,
	step, coalesce(stuck_for, ''), ended_at IS NOT NULL, crashes`

func scanState(row pgx.CollectableRow) (*state, error) {
	var (
		s                           state
		started, deadline, finished *time.Time
	)
	in := &s.in
	err := row.Scan(idInto(&in.ID), &in.Lane, &in.Definition, &in.Version, &in.Data, &in.State, &in.Step, &in.Attempt,
		&in.Failure.Kind, &in.Failure.Step, &in.Failure.Reason, &in.Error, &in.Rev,
		&in.CancelRequested, &in.ForwardOnly, &in.CreatedAt, &started, &deadline, &in.UpdatedAt, &finished,
		&s.step, &s.stuckFor, &s.ended, &s.crashes)
	if err != nil {
		return nil, err
	}
	in.StartedAt, in.DeadlineAt, in.FinishedAt = orZero(started), orZero(deadline), orZero(finished)
	return &s, nil
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// loadHeads reads the oldest live instance of each lane with its journal. A lane without one is left out.
func (e *Engine) loadHeads(ctx context.Context, lanes []string) ([]*state, error) {
	rows, _ := e.pool.Query(ctx, `
		SELECT h.* FROM unnest($1::text[]) AS c(claimed)
		CROSS JOIN LATERAL (
			SELECT `+instanceColumns+`
			FROM saga_instances
			WHERE lane = c.claimed AND finished_at IS NULL
			ORDER BY n
			LIMIT 1
		) h`, lanes)
	heads, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, fmt.Errorf("load instances: %w", err)
	}
	byID := map[uuid.UUID]*state{}
	var ids uuids
	for _, s := range heads {
		s.def = e.defs[defKey{s.in.Definition, s.in.Version}]
		if s.in.State != Waiting {
			byID[s.in.ID] = s
			ids = append(ids, pgID(s.in.ID))
		}
	}
	if len(ids) == 0 {
		return heads, nil
	}
	return heads, e.loadJournal(ctx, ids, byID)
}

func (e *Engine) loadJournal(ctx context.Context, ids uuids, byID map[uuid.UUID]*state) error {
	rows, _ := e.pool.Query(ctx, `
		SELECT saga_id, step, undo, state, attempt, lost, key_since, intent_at, outcome_at, result, saved, answer,
			coalesce(error, '')
		FROM saga_journal WHERE saga_id = ANY($1)`, ids)
	var (
		id                    uuid.UUID
		k                     entryKey
		en                    entry
		since, outcome        *time.Time
		result, saved, answer *json.RawMessage
	)
	_, err := pgx.ForEachRow(rows, []any{idInto(&id), &k.step, &k.undo, &en.state, &en.attempt, &en.lost, &since, &en.intentAt,
		&outcome, &result, &saved, &answer, &en.err}, func() error {
		en.keySince, en.outcomeAt = orZero(since), orZero(outcome)
		en.result, en.saved, en.answer = orNil(result), orNil(saved), orNil(answer)
		s := byID[id]
		if s.journal == nil {
			s.journal = map[entryKey]entry{}
		}
		s.journal[k] = en
		return nil
	})
	if err != nil {
		return fmt.Errorf("load journal: %w", err)
	}
	return nil
}

func orNil(raw *json.RawMessage) json.RawMessage {
	if raw == nil {
		return nil
	}
	return *raw
}

// tasks makes tasks of what was claimed, and gives back the lanes that have nothing to run.
func (e *Engine) tasks(ctx context.Context, c *claimed, at time.Time) ([]*task, error) {
	heads, err := e.loadHeads(ctx, c.lanes)
	if err != nil {
		return nil, err
	}
	var (
		tasks   []*task
		crashed uuids
		idle    = map[string]bool{}
	)
	for _, lane := range c.lanes {
		idle[lane] = true
	}
	for _, s := range heads {
		delete(idle, s.in.Lane)
		if c.crashed[s.in.Lane] {
			s.crashes = max(s.crashes, min(s.crashes+1, suspectFrom))
			crashed = append(crashed, pgID(s.in.ID))
		}
		tasks = append(tasks, e.newTask(s, c.byLane[s.in.Lane], at, c.crashed[s.in.Lane]))
	}
	if len(crashed) > 0 {
		// Everything that the engine held may have killed it, and most of it did not: being there makes a suspect, no
		// more. Only running alone counts on.
		err := commit(ctx, "count crashes", func() error {
			_, err := e.pool.Exec(ctx, `
				UPDATE saga_instances SET crashes = crashes + 1 WHERE id = ANY($1) AND crashes < $2`, crashed, suspectFrom)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("count crashes: %w", err)
		}
	}
	if len(idle) > 0 {
		var claims []claim
		for lane := range idle {
			claims = append(claims, c.byLane[lane])
		}
		return tasks, e.giveBack(ctx, claims, nil)
	}
	return tasks, nil
}

func (e *Engine) newTask(s *state, c claim, at time.Time, crashed bool) *task {
	t := &task{claim: c, s: s, until: at.Add(e.opts.Lease)}
	if en, ok := s.journal[entryKey{s.step, false}]; ok && en.answer != nil {
		t.ev = storedAnswer(s.step, en)
	}
	// The engine that called, or asked, is gone. The outcome is unknown, as if the call had timed out. As with
	// transactions, being there makes a suspect, and only a call made alone counts on.
	k := s.at()
	if en := s.journal[k]; crashed && en.state.unknown() && en.lost < suspectFrom {
		en.lost++
		s.journal[k] = en
	}
	t.suspect = s.suspected()
	return t
}

// countRun says that a suspect is about to run, so that its engine's death is its own.
func (e *Engine) countRun(ctx context.Context, id uuid.UUID, by int) error {
	err := commit(ctx, "count a suspect", func() error {
		_, err := e.pool.Exec(ctx, `UPDATE saga_instances SET crashes = greatest(crashes + $2, 0) WHERE id = $1`, id, by)
		return err
	})
	if err != nil {
		return fmt.Errorf("count the run of a suspect: %w", err)
	}
	return nil
}

// giveBack lets lanes go at once: those without an instance until one is started, the others for any engine. A lane in
// crashed keeps its token: whoever claims it next has to see that an engine died at it.
func (e *Engine) giveBack(ctx context.Context, claims []claim, crashed map[string]bool) error {
	lanes, tokens, revs := columns(claims)
	died := make([]bool, len(claims))
	for i, c := range claims {
		died[i] = crashed[c.lane]
	}
	err := commit(ctx, "give lanes back", func() error {
		_, err := e.pool.Exec(ctx, `
			UPDATE saga_lanes l
			SET token = CASE WHEN c.died AND l.pending > 0 THEN l.token END,
				run_at = CASE WHEN l.pending > 0 THEN clock_timestamp() END
			FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bool[]) AS c(lane, token, rev, died)
			WHERE l.lane = c.lane AND l.token = c.token AND l.rev = c.rev`, lanes, tokens, revs, died)
		return err
	})
	if err != nil {
		return fmt.Errorf("give lanes back: %w", err)
	}
	return nil
}

// renew keeps lanes that wait for their turn inside this engine. Lanes with a call under way are not renewed: their
// lease is what bounds the call. One whose call has begun meanwhile keeps the longer lease that it got for it.
func (e *Engine) renew(ctx context.Context, claims []claim) error {
	lanes, tokens, revs := columns(claims)
	_, err := e.pool.Exec(ctx, `
		UPDATE saga_lanes SET run_at = greatest(run_at, now() + $4::interval)
		WHERE lane IN (
			SELECT l.lane FROM saga_lanes l
			JOIN unnest($1::text[], $2::uuid[], $3::bigint[]) AS c(lane, token, rev)
				ON l.lane = c.lane AND l.token = c.token AND l.rev = c.rev
			FOR UPDATE OF l SKIP LOCKED
		)`, lanes, tokens, revs, e.opts.Lease)
	if err != nil {
		return fmt.Errorf("renew leases: %w", err)
	}
	return nil
}

func columns(claims []claim) (lanes []string, tokens uuids, revs []int64) {
	for _, c := range claims {
		lanes, tokens, revs = append(lanes, c.lane), append(tokens, pgID(c.token)), append(revs, c.rev)
	}
	return lanes, tokens, revs
}

// uuids are ids as they go to Postgres. Each [uuid.UUID] would go as a driver.Valuer, through text.
type uuids = pgtype.FlatArray[pgtype.UUID]

func pgID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// idInto reads an id without that detour.
func idInto(id *uuid.UUID) *[16]byte { return (*[16]byte)(id) }
