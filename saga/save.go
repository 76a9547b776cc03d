package saga

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// saver commits together what several calls save: those that come while a transaction is under way share the next one. A
// transaction for each was a fifth of what the order saga costs Postgres.
type saver struct {
	pool *pgxpool.Pool
	runs *sync.WaitGroup // of the engine that waits for it

	mu      sync.Mutex
	waiting []*save
	busy    bool
}

// save is the progress of one call.
type save struct {
	call     *Call
	progress *string
	done     chan bool // whether it was committed
}

// share commits progress with that of other calls. It reports false if it was not: the row was locked, the lane is lost, or one
// of the others has progress that Postgres does not take. ctx is the call's, alive the engine's.
func (s *saver) share(ctx, alive context.Context, c *Call, progress json.RawMessage) bool {
	mine := &save{c, text(string(progress)), make(chan bool, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, mine)
	if !s.busy {
		s.busy = true
		s.runs.Go(func() { s.run(alive) })
	}
	s.mu.Unlock()
	select {
	case committed := <-mine.done:
		return committed
	case <-ctx.Done():
		return false
	}
}

// run commits until nobody waits.
func (s *saver) run(ctx context.Context) {
	for {
		s.mu.Lock()
		saves := s.waiting
		s.waiting = nil
		s.busy = len(saves) > 0
		s.mu.Unlock()
		if len(saves) == 0 {
			return
		}
		committed := s.store(ctx, saves)
		for _, one := range saves {
			one.done <- committed[one.call.under()]
		}
	}
}

// savedUnder tells whose progress was committed. Two calls of one saga may share a transaction, before and after its lane was taken
// over, and only the later one's is: a lane's rev grows with every claim.
type savedUnder struct {
	saga uuid.UUID
	rev  int64
}

func (c *Call) under() savedUnder { return savedUnder{c.saga, c.claim.rev} }

// store commits progress and returns whose it was.
func (s *saver) store(ctx context.Context, saves []*save) map[savedUnder]bool {
	var (
		claims   []claim
		ids      uuids
		steps    []int
		progress []*string
	)
	for _, one := range saves {
		claims, ids = append(claims, one.call.claim), append(ids, pgID(one.call.saga))
		steps, progress = append(steps, one.call.step), append(progress, one.progress)
	}
	lanes, tokens, revs := columns(claims)
	// It waits for no lane, so it cannot deadlock with transactions that start sagas in several of them.
	rows, _ := s.pool.Query(ctx, `
		WITH held AS (
			SELECT t.saga_id, t.step, t.saved, l.rev FROM saga_lanes l
			JOIN unnest($1::text[], $2::uuid[], $3::bigint[], $4::uuid[], $5::int[], $6::text[])
					AS t(lane, token, rev, saga_id, step, saved)
				ON l.lane = t.lane AND l.token = t.token AND l.rev = t.rev
			FOR SHARE OF l SKIP LOCKED
		)
		UPDATE saga_journal j SET saved = held.saved::jsonb
		FROM held WHERE j.saga_id = held.saga_id AND j.step = held.step AND NOT j.undo
		RETURNING j.saga_id, held.rev`, lanes, tokens, revs, ids, steps, progress)
	committed := map[savedUnder]bool{}
	var one savedUnder
	if _, err := pgx.ForEachRow(rows, []any{idInto(&one.saga), &one.rev}, func() error {
		committed[one] = true
		return nil
	}); err != nil {
		return nil // each tries alone, and says what is wrong
	}
	return committed
}
