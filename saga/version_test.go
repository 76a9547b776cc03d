package saga_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/saga"
)

// An upgrade in the middle of a trip: what was started under the old steps ends under them, what comes later has the new
// ones, also in the same lane, and the old code may go when the last of its instances has ended, not before.
func TestAnUpgradeEndsOldInstancesUnderTheirOwnSteps(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := newProvider()
	var open atomic.Bool
	charge := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
		if !open.Load() {
			return nil, saga.NotSent(errors.New("closed for the upgrade"))
		}
		return p.charge(ctx, in, call)
	}
	v1 := saga.Define("trip", 1,
		saga.LocalBatch("hold seat", hold).UndoBatch(release),
		saga.Remote("charge", charge).Query(p.find).Undo(p.refund).Timeout(time.Second),
		saga.Local("confirm", confirm).Pivot())
	v2 := saga.Define("trip", 2,
		saga.Remote("charge", charge).Query(p.find).Undo(p.refund).Timeout(time.Second),
		saga.LocalBatch("hold seat", hold).UndoBatch(release),
		saga.Local("confirm", confirm).Pivot(),
		saga.Local("greet", nothing))
	old, behind, fresh := newTrip("anna"), newTrip("anna"), newTrip("bert")
	behind.Version, fresh.Version = 2, 2

	start(t, pool, old)
	stop := engine(t, pool, quick(), v1)
	until(t, "the old trip is in the middle", func() bool {
		return strings.Contains(journal(load(t, pool, old.ID)), "do hold seat succeeded; do charge")
	})
	stop()
	start(t, pool, behind, fresh)

	alone, err := saga.NewEngine(pool, []*saga.Definition{v2}, quick())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline) // one that does not refuse runs on
	defer cancel()
	if err := alone.Run(ctx); err == nil || !strings.Contains(err.Error(), `1 instances of "trip" version 1 are live`) {
		t.Errorf("Run without the old version = %v, want it to say what is live", err)
	}
	open.Store(true)
	stop = engine(t, pool, quick(), v1, v2)
	for _, in := range []saga.NewInstance{old, behind, fresh} {
		want := "do hold seat succeeded; do charge succeeded; do confirm succeeded; "
		if in.Version == 2 {
			want = "do charge succeeded; do hold seat succeeded; do confirm succeeded; do greet succeeded; "
		}
		if got := journal(untilState(t, pool, in.ID, saga.Completed)); got != want {
			t.Errorf("journal of version %d = %s, want %s", in.Version, got, want)
		}
	}
	stop()
	last := newTrip("cora")
	last.Version = 2
	start(t, pool, last)
	engine(t, pool, quick(), v2) // fails the test if it refuses to run
	untilState(t, pool, last.ID, saga.Completed)
	if p.charges != 4 {
		t.Errorf("%d charges, want one for each of 4 trips", p.charges)
	}
}
