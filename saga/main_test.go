package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/saga"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(processVariable); url != "" {
		if err := engineProcess(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

// database returns a pool on a database with the saga tables and those of the trip.
func database(t testing.TB) *pgxpool.Pool {
	t.Helper()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, saga.Migrations(), "public")
	_, err := db.Pool.Exec(t.Context(), `
		CREATE TABLE seats (train text PRIMARY KEY, free int NOT NULL CHECK (free >= 0));
		CREATE TABLE holds (saga_id uuid PRIMARY KEY, train text NOT NULL);
		CREATE TABLE trips (saga_id uuid PRIMARY KEY, state text NOT NULL, reason text NOT NULL DEFAULT '', paid text,
			at timestamptz NOT NULL DEFAULT clock_timestamp());
		INSERT INTO seats VALUES ('north', 1000000)`)
	if err != nil {
		t.Fatalf("create tables: %v", err)
	}
	return db.Pool
}

// quick makes everything that waits wait little.
func quick() saga.EngineOptions {
	return saga.EngineOptions{
		MinPoll: time.Millisecond, MaxPoll: 5 * time.Millisecond,
		RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond,
		InDoubtEvery: 10 * time.Millisecond,
		// Short, because the claim of an engine that died may commit after its leases were ended (sagatest.Expire).
		Lease: time.Second,
		Log:   slog.New(slog.DiscardHandler),
	}
}

// patient is [quick] with leases that are longer than a busy machine can be absent.
func patient() saga.EngineOptions {
	opts := quick()
	opts.Lease = time.Minute
	return opts
}

// provider is a payment provider: it remembers keys, can be asked, cancelled and refunded. Behaviours are taken from
// the front of script, one for each confirm; without any it says yes.
type provider struct {
	mu      sync.Mutex
	script  []behaviour
	intents map[string]*intent // by key
	// late holds charges that have been accepted and not carried out yet.
	late []*intent
	// overbooked says that no trip can be confirmed. It is the railway's word, kept here with the rest of the world.
	overbooked bool

	charges, refunds, cancels, calls int
}

type intent struct {
	id                          string
	charged, refunded, canceled bool
}

type behaviour string

const (
	yes          behaviour = "ok"
	no           behaviour = "declined"
	lostAnswer   behaviour = "charged, answer lost"
	timeout      behaviour = "not charged, timeout"
	notSent      behaviour = "never reached"
	chargedLater behaviour = "timeout, charged later"
	panics       behaviour = "panic"
)

var errTimeout = errors.New("timeout")

type payment struct {
	Intent string `json:"intent"`
}

func newProvider(script ...behaviour) *provider {
	return &provider{script: script, intents: map[string]*intent{}}
}

// charge creates an intent, stores its id, confirms it.
func (p *provider) charge(ctx context.Context, _ *saga.Instance, call *saga.Call) (any, error) {
	var done payment
	if ok, err := call.Saved(&done); err != nil || !ok {
		done.Intent = p.create(call.Key)
		if err := call.Save(ctx, done); err != nil {
			return nil, err
		}
	}
	return done, p.confirm(call.Key)
}

func (p *provider) create(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	if p.intents[key] == nil {
		p.intents[key] = &intent{id: fmt.Sprintf("pi_%d", len(p.intents)+1)}
	}
	return p.intents[key].id
}

func (p *provider) confirm(key string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	b := yes
	if len(p.script) > 0 {
		b, p.script = p.script[0], p.script[1:]
	}
	in := p.intents[key]
	switch b {
	case yes:
	case no:
		return saga.Rejected("card declined")
	case notSent:
		return saga.NotSent(errors.New("connection refused"))
	case timeout:
		return errTimeout
	case panics:
		panic("a participant's bug")
	case chargedLater:
		p.late = append(p.late, in)
		return errTimeout
	case lostAnswer:
		p.carryOut(in)
		return errTimeout
	}
	if !p.carryOut(in) {
		return saga.Rejected("canceled")
	}
	return nil
}

func (p *provider) carryOut(in *intent) bool {
	if in.canceled {
		return false
	}
	if !in.charged {
		in.charged = true
		p.charges++
	}
	return true
}

func (p *provider) find(_ context.Context, _ *saga.Instance, call *saga.Call) (saga.Answer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	in := p.intents[call.Key]
	switch {
	case in == nil:
		return saga.NeverExisted(), nil
	case in.charged:
		return saga.FoundSucceeded(payment{in.id}), nil
	}
	return saga.NotYet(), nil
}

// refund cancels the intent, which refuses every later charge, or refunds it.
func (p *provider) refund(_ context.Context, _ *saga.Instance, call *saga.Call) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	in := p.intents[call.ActionKey]
	switch {
	case in == nil:
		return nil
	case in.charged && !in.refunded:
		in.refunded = true
		p.refunds++
	case !in.charged && !in.canceled:
		in.canceled = true
		p.cancels++
	}
	return nil
}

func (p *provider) balance() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.charges - p.refunds
}

// trip is the definition under test: every kind of step, with a seat to hold and money to move.
func trip(p *provider) *saga.Definition {
	confirm := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
		if p.overbooked {
			return saga.Rejected("overbooked")
		}
		return confirm(ctx, tx, in)
	}
	return saga.Define("trip", 1,
		saga.Local("check", func(context.Context, pgx.Tx, *saga.Instance) error { return nil }),
		saga.LocalBatch("hold seat", hold).UndoBatch(release),
		saga.Remote("charge", p.charge).Query(p.find).Undo(p.refund).Record(paid).Timeout(time.Second),
		saga.Local("confirm", confirm).Pivot(),
	).OnFailed(failed)
}

func hold(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	ids := make([]uuid.UUID, len(in))
	for i := range in {
		ids[i] = in[i].ID
	}
	var free int
	if err := tx.QueryRow(ctx, `SELECT free FROM seats WHERE train = 'north' FOR UPDATE`).Scan(&free); err != nil {
		return nil, err
	}
	errs := make([]error, len(in))
	for i := range errs {
		if i >= free {
			errs[i] = saga.Rejected("no seat")
		}
	}
	got := ids[:min(free, len(ids))]
	if _, err := tx.Exec(ctx, `INSERT INTO holds SELECT id, 'north' FROM unnest($1::uuid[]) AS id`, got); err != nil {
		return nil, err
	}
	_, err := tx.Exec(ctx, `UPDATE seats SET free = free - $1 WHERE train = 'north'`, len(got))
	return errs, err
}

func release(ctx context.Context, tx pgx.Tx, in []*saga.Instance) ([]error, error) {
	ids := make([]uuid.UUID, len(in))
	for i := range in {
		ids[i] = in[i].ID
	}
	tag, err := tx.Exec(ctx, `DELETE FROM holds WHERE saga_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `UPDATE seats SET free = free + $1 WHERE train = 'north'`, tag.RowsAffected())
	return nil, err
}

func paid(ctx context.Context, tx pgx.Tx, in *saga.Instance, result json.RawMessage) error {
	var p payment
	if err := json.Unmarshal(result, &p); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO trips (saga_id, state, paid) VALUES ($1, 'paid', $2)`, in.ID, p.Intent)
	return err
}

func confirm(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO trips (saga_id, state) VALUES ($1, 'confirmed')
		ON CONFLICT (saga_id) DO UPDATE
		SET state = CASE trips.state WHEN 'paid' THEN '' ELSE trips.state || ', ' END || 'confirmed', at = clock_timestamp()`, in.ID)
	return err
}

func failed(ctx context.Context, tx pgx.Tx, in *saga.Instance, cause saga.Failure) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO trips (saga_id, state, reason) VALUES ($1, 'failed', $2)
		ON CONFLICT (saga_id) DO UPDATE SET state = CASE trips.state WHEN 'paid' THEN '' ELSE trips.state || ', ' END || 'failed', reason = excluded.reason`,
		in.ID, string(cause.Kind)+": "+cause.Reason)
	return err
}
