package saga_test

import (
	"testing"

	"github.com/orderflow-dev/orderflow/saga"
)

func TestEngineCarriesASagaThroughItsSteps(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	in := newTrip("anna")
	start(t, pool, in)
	engine(t, pool, quick(), trip(p))
	h := untilState(t, pool, in.ID, saga.Completed)
	want := "do check succeeded; do hold seat succeeded; do charge succeeded; do confirm succeeded; "
	if got := journal(h); got != want {
		t.Errorf("journal = %s, want %s", got, want)
	}
	if p.balance() != 1 || p.charges != 1 {
		t.Errorf("provider charged %d times, refunded %d, want one charge", p.charges, p.refunds)
	}
	if n := count(t, pool, `SELECT count(*) FROM saga_lanes WHERE pending <> 0 OR token IS NOT NULL OR run_at IS NOT NULL`); n != 0 {
		t.Errorf("%d lanes are not at rest", n)
	}
}

func TestEngineSettlesWhatACallDid(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence string
		script   []behaviour
		want     saga.State
		charges  int
		refunds  int
	}{
		{"a decline compensates", []behaviour{no}, saga.Compensated, 0, 0},
		{"a charge whose answer is lost is found, and not sent again", []behaviour{lostAnswer, no}, saga.Completed, 1, 0},
		{"a call that did nothing is sent again under its key", []behaviour{timeout, timeout, yes}, saga.Completed, 1, 0},
		{"a call that never left is sent again without being asked about", []behaviour{notSent, notSent, yes}, saga.Completed, 1, 0},
		{"a panic leaves the outcome unknown", []behaviour{panics, yes}, saga.Completed, 1, 0},
		{"after timeouts, a decline still compensates", []behaviour{timeout, notSent, no}, saga.Compensated, 0, 0},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := newProvider(tc.script...)
			in := newTrip("anna")
			start(t, pool, in)
			engine(t, pool, quick(), trip(p))
			h := untilState(t, pool, in.ID, tc.want)
			if p.charges != tc.charges || p.refunds != tc.refunds || len(p.intents) != 1 {
				t.Errorf("%d charges, %d refunds, %d intents, want %d, %d and 1; journal %s",
					p.charges, p.refunds, len(p.intents), tc.charges, tc.refunds, journal(h))
			}
			held := count(t, pool, `SELECT count(*) FROM holds`)
			if want := map[saga.State]int{saga.Completed: 1, saga.Compensated: 0}[tc.want]; held != want {
				t.Errorf("%d seats held, want %d", held, want)
			}
		})
	}
}
