package saga_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

// F22, F23: at every point of every way that a charge can go, a crash and a second crash leave one charge or none, a
// seat held exactly for a confirmed trip, and one outcome told.
func TestEveryCrashLeavesMoneyAndSeatsExact(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence string
		script   []behaviour
		cancel   bool
		want     saga.State
		points   int // a new commit point or call must come with a look at this test
	}{
		{"paid at once", nil, false, saga.Completed, 9},
		{"declined", []behaviour{no, no, no, no}, false, saga.Compensated, 9},
		{"charged, answer lost", []behaviour{lostAnswer}, false, saga.Completed, 16},
		{"timeout, then paid", []behaviour{timeout}, false, saga.Completed, 20},
		{"never reached, then paid", []behaviour{notSent}, false, saga.Completed, 16},
		{"cancelled at the start", nil, true, saga.Compensated, 3},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			points := sagatest.EveryCrash(t, func(testing.TB) *sagatest.World {
				p := newProvider(tc.script...)
				in := newTrip("anna")
				w := &sagatest.World{
					Pool: pool, Definitions: []*saga.Definition{trip(p)}, Options: quick(), Start: []saga.NewInstance{in},
					Check: func(t testing.TB) { checkTrip(t, pool, p, in, tc.want) },
				}
				if tc.cancel {
					w.Started = func(t testing.TB) {
						inTx(t, pool, func(tx pgx.Tx) error { return saga.RequestCancel(t.Context(), tx, in.ID) })
					}
				}
				return w
			})
			if points != tc.points {
				t.Errorf("%d crash points, want %d", points, tc.points)
			}
		})
	}
}

// checkTrip checks that money, seats and words agree with the state.
func checkTrip(t testing.TB, pool *pgxpool.Pool, p *provider, in saga.NewInstance, want saga.State) {
	t.Helper()
	h := load(t, pool, in.ID)
	if h.Instance.State != want {
		t.Errorf("state = %s (%s), want %s; journal %s", h.Instance.State, h.Instance.Error, want, journal(h))
	}
	paid, held := 0, 0
	if want == saga.Completed {
		paid, held = 1, 1
	}
	if p.balance() != paid || p.charges > 1 || p.refunds > 1 {
		t.Errorf("%d charges and %d refunds, want a balance of %d and no more than one each", p.charges, p.refunds, paid)
	}
	if n := count(t, pool, `SELECT count(*) FROM holds WHERE saga_id = $1`, in.ID); n != held {
		t.Errorf("%d seats held, want %d", n, held)
	}
	if n := count(t, pool, `SELECT free + (SELECT count(*) FROM holds) FROM seats`); n != 1000000 {
		t.Errorf("%d seats in all, want 1000000", n)
	}
	states := map[saga.State]string{saga.Completed: "confirmed", saga.Compensated: "failed"}
	if n := count(t, pool, `SELECT count(*) FROM trips WHERE saga_id = $1 AND state = $2`, in.ID, states[want]); n != 1 {
		t.Errorf("the trip was not told %q once", states[want])
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_lanes WHERE pending <> 0 OR token IS NOT NULL OR run_at IS NOT NULL`); n != 0 {
		t.Errorf("%d lanes are not at rest", n)
	}
}
