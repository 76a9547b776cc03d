package saga_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

func TestOneLaneRunsInOrderOneAtATime(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var (
		mu     sync.Mutex
		inside = map[string]int{}
		order  = map[string][]uuid.UUID{}
	)
	p := newProvider()
	enter := func(_ context.Context, _ pgx.Tx, in *saga.Instance) error {
		mu.Lock()
		defer mu.Unlock()
		if inside[in.Lane]++; inside[in.Lane] > 1 {
			return saga.Stuck(fmt.Errorf("%d instances of one lane at once", inside[in.Lane]))
		}
		order[in.Lane] = append(order[in.Lane], in.ID)
		return nil
	}
	leave := func(_ context.Context, _ pgx.Tx, in *saga.Instance) error {
		mu.Lock()
		defer mu.Unlock()
		inside[in.Lane]--
		return nil
	}
	def := saga.Define("trip", 1, saga.Local("enter", enter),
		saga.Remote("charge", p.charge).Query(p.find).Undo(p.refund).Timeout(time.Second), saga.Local("leave", leave))
	want := map[string][]uuid.UUID{}
	var all []saga.NewInstance
	for i := range 60 {
		in := newTrip(fmt.Sprintf("user-%d", i%7))
		want[in.Lane] = append(want[in.Lane], in.ID)
		all = append(all, in)
	}
	start(t, pool, all...)
	start(t, pool, all[:20]...) // a second start changes nothing
	engine(t, pool, quick(), def)
	engine(t, pool, quick(), def)
	until(t, "all have completed", func() bool {
		return count(t, pool, `SELECT count(*) FROM saga_instances WHERE state = 'completed'`) == len(all)
	})
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("order of the lanes (-want +got):\n%s", diff)
	}
}

func TestAnInstanceInDoubtHoldsItsOwnLaneOnly(t *testing.T) {
	t.Parallel()
	pool := database(t)
	dark := newProvider()
	never := func(context.Context, *saga.Instance, *saga.Call) (any, error) { return nil, errTimeout }
	silent := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) { return saga.NotYet(), nil }
	def := saga.Define("trip", 1,
		saga.Remote("charge", never).Query(silent).Undo(dark.refund).Timeout(time.Millisecond).KeyWindow(30*time.Millisecond))
	p := newProvider()
	fine := saga.Define("fine", 1, saga.Remote("charge", p.charge).Query(p.find).Undo(p.refund).Timeout(time.Second))
	doubtful, behind, other := newTrip("anna"), newTrip("anna"), newTrip("bert")
	behind.Definition, other.Definition = "fine", "fine"
	start(t, pool, doubtful, behind, other)
	engine(t, pool, quick(), def, fine)
	untilState(t, pool, other.ID, saga.Completed)
	h := untilState(t, pool, doubtful.ID, saga.InDoubt)
	if got := load(t, pool, behind.ID).Instance.State; got != saga.Waiting {
		t.Errorf("the instance behind one in doubt is %s, want waiting", got)
	}
	st, err := saga.Inspect(t.Context(), pool)
	if err != nil || st.States[saga.InDoubt] != 1 || st.States[saga.Waiting] != 1 {
		t.Errorf("Inspect = %+v, %v, want one in doubt and one waiting", st, err)
	}
	list, err := saga.List(t.Context(), pool, saga.Filter{State: saga.InDoubt})
	if err != nil || len(list) != 1 || list[0].ID != h.Instance.ID {
		t.Errorf("List = %v, %v, want the one in doubt", list, err)
	}
}

func TestADeadlineStartsWhenTheInstanceHeadsItsLane(t *testing.T) {
	t.Parallel()
	pool := database(t)
	gate := make(chan struct{})
	var first atomic.Pointer[uuid.UUID]
	wait := func(ctx context.Context, in *saga.Instance, _ *saga.Call) (any, error) {
		if in.ID == *first.Load() {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return nil, ctx.Err()
	}
	p := newProvider()
	def := saga.Define("trip", 1, saga.Remote("wait", wait).Query(p.find).Undo(p.refund).Timeout(20*time.Second)).Deadline(time.Minute)
	a, b := newTrip("anna"), newTrip("anna")
	first.Store(&a.ID)
	start(t, pool, a, b)
	// b has waited longer than its deadline.
	if _, err := pool.Exec(t.Context(), `UPDATE saga_instances SET created_at = created_at - interval '1 hour' WHERE id = $1`, b.ID); err != nil {
		t.Fatal(err)
	}
	engine(t, pool, quick(), def)
	untilState(t, pool, a.ID, saga.Running)
	close(gate)
	if h := untilState(t, pool, b.ID, saga.Completed); h.Instance.DeadlineAt.Sub(h.Instance.StartedAt) != time.Minute {
		t.Errorf("deadline at %v, started at %v, want a minute between", h.Instance.DeadlineAt, h.Instance.StartedAt)
	}
}

func TestInstancesAtOneLocalStepShareATransaction(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var mu sync.Mutex
	var sizes []int
	together := func(_ context.Context, _ pgx.Tx, in []*saga.Instance) ([]error, error) {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, len(in))
		return nil, nil
	}
	def := saga.Define("trip", 1, saga.LocalBatch("together", together), saga.Local("confirm", confirm).Pivot())
	var all []saga.NewInstance
	for i := range 400 {
		all = append(all, newTrip(fmt.Sprintf("user-%d", i)))
	}
	start(t, pool, all...)
	engine(t, pool, patient(), def)
	until(t, "all have completed", func() bool {
		return count(t, pool, `SELECT count(*) FROM trips WHERE state = 'confirmed'`) == len(all)
	})
	mu.Lock()
	defer mu.Unlock()
	if len(sizes) > 20 || slices.Max(sizes) < 50 {
		t.Errorf("400 instances ran in batches of %v, want a few large ones", sizes)
	}
}

// F25: the step is set-based under the row's lock, so the last seat goes once.
func TestAThousandInstancesForTenSeatsHoldTen(t *testing.T) {
	t.Parallel()
	pool := database(t)
	if _, err := pool.Exec(t.Context(), `UPDATE seats SET free = 10`); err != nil {
		t.Fatal(err)
	}
	p := newProvider()
	var all []saga.NewInstance
	for i := range 1000 {
		all = append(all, newTrip(fmt.Sprintf("user-%d", i)))
	}
	start(t, pool, all...)
	engine(t, pool, patient(), trip(p))
	engine(t, pool, patient(), trip(p))
	until(t, "all have ended", func() bool {
		return count(t, pool, `SELECT count(*) FROM saga_instances WHERE finished_at IS NULL`) == 0
	})
	completed := count(t, pool, `SELECT count(*) FROM saga_instances WHERE state = 'completed'`)
	held := count(t, pool, `SELECT count(*) FROM holds`)
	if completed != 10 || held != 10 || p.balance() != 10 {
		t.Errorf("%d completed, %d seats held, %d paid, want 10 of each", completed, held, p.balance())
	}
}
