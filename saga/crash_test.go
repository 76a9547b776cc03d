package saga_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

// F22, F23: at every point of every way that a charge can go, a crash and a second crash leave one charge or none, a
// seat held exactly for a confirmed trip, and one outcome told.
func TestEveryCrashLeavesMoneyAndSeatsExact(t *testing.T) {
	t.Parallel()
	// The way to the provider, for all but the trip that is cancelled before. Their capacity makes each append a copy.
	called := slices.Clip([]string{"commit claim", "commit running charge intent", "call charge", "commit save charge"})
	const done, undone = saga.Completed, saga.Compensated
	for _, tc := range []struct {
		sentence           string
		script             []behaviour
		cancel, overbooked bool
		want               saga.State
		points             []string
	}{
		{"paid at once", nil, false, false, done, append(called, "commit completed")},
		{"declined", []behaviour{no, no, no, no}, false, false, undone, append(called, "commit compensated")},
		{"charged, answer lost", []behaviour{lostAnswer}, false, false, done, append(called, "commit running charge", "ask charge", "commit completed")},
		{"timeout, then paid", []behaviour{timeout}, false, false, done, append(called, "commit running charge", "ask charge", "commit completed")},
		{"never reached, then paid", []behaviour{notSent}, false, false, done, append(called, "commit running charge", "commit completed")},
		{"paid, then overbooked", nil, false, true, undone, append(called, "commit compensating charge intent", "undo charge", "commit compensated")},
		{"cancelled at the start", nil, true, false, undone, []string{"commit claim", "commit compensated"}},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			sagatest.EveryCrash(t, func(testing.TB) *sagatest.World {
				p := newProvider(tc.script...)
				p.overbooked = tc.overbooked
				in := newTrip("anna")
				w := &sagatest.World{
					Pool: pool, Definitions: []*saga.Definition{trip(p)}, Options: quick(),
					Start: []saga.NewInstance{in}, Points: tc.points,
					Check: func(t testing.TB) { checkTrip(t, pool, p, in, tc.want) },
				}
				if tc.cancel {
					w.Started = func(t testing.TB) {
						inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
					}
				}
				return w
			})
		})
	}
}

// checkTrip checks that money, seats and words agree with the state, and that the lane is at rest.
func checkTrip(t testing.TB, pool *pgxpool.Pool, p *provider, in saga.NewInstance, want saga.State) {
	t.Helper()
	h := load(t, pool, in.ID)
	if h.Instance.State != want {
		t.Errorf("state = %s (%s), want %s; journal %s", h.Instance.State, h.Instance.Error, want, journal(h))
	}
	if got, want := judge(t, pool, p, in.ID), exactly(want); got != want {
		t.Errorf("the trip is %s, want it %s", got, want)
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_lanes WHERE pending <> 0 OR token IS NOT NULL OR run_at IS NOT NULL`); n != 0 {
		t.Errorf("%d lanes are not at rest", n)
	}
}

// verdict is what became of a trip in the world: the words that were told about it, the money and the seats.
type verdict struct {
	told  string // all that was, with commas between
	money int    // charges less refunds
	held  int    // seats
	seats int    // in all, held or free
	twice string // what was done more than once, though it may have been taken back
}

func (v verdict) String() string {
	return fmt.Sprintf("told %q, %d paid, %d seats held, %d in all%s", v.told, v.money, v.held, v.seats, v.twice)
}

// exactly is the verdict that a trip in the state deserves.
func exactly(state saga.State) verdict {
	if state == saga.Completed {
		return verdict{told: "confirmed", money: 1, held: 1, seats: 1000000}
	}
	return verdict{told: "failed", seats: 1000000}
}

// judge looks at the world alone: it knows nothing of the engine that made it so.
func judge(t testing.TB, pool *pgxpool.Pool, p *provider, id uuid.UUID) verdict {
	t.Helper()
	v := verdict{
		money: p.balance(),
		held:  count(t, pool, `SELECT count(*) FROM holds WHERE saga_id = $1`, id),
		seats: count(t, pool, `SELECT free + (SELECT count(*) FROM holds) FROM seats`),
	}
	if err := pool.QueryRow(t.Context(), `SELECT coalesce(min(state), '') FROM trips WHERE saga_id = $1`, id).Scan(&v.told); err != nil {
		t.Fatal(err)
	}
	if p.charges > 1 || p.refunds > 1 {
		v.twice = fmt.Sprintf(", charged %d times and refunded %d times", p.charges, p.refunds)
	}
	return v
}
