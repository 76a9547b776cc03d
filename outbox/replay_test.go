package outbox_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func TestReplayPublishesTheRingAgainBeforeAnythingNew(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	start(t, db.Pool, broker, outbox.RelayOptions{PageSize: 3})
	var before []outbox.Message
	for n := range 10 {
		before = append(before, message("orders", "a", n), message("orders", "b", n))
	}
	write(t, db.Pool, before...)
	first := waitFor(t, broker, 20)
	number, err := outbox.Replay(t.Context(), db.Pool, schema, outbox.ReplayOptions{
		Since: first[0].CreatedAt, Topic: "orders", Key: "a",
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		messages, done, err := outbox.ReplayDone(t.Context(), db.Pool, schema, number)
		if err == nil && (!done || messages != 10) {
			err = fmt.Errorf("replay has published %d of 10, done %v", messages, done)
		}
		return err
	})
	wantAudit(t, db.Pool, "replay by postgres of relay orders/a : ")
	again := broker.Records()[20:]
	if len(again) != 10 {
		t.Fatalf("%d records published again, want 10", len(again))
	}
	for i, r := range again {
		if r.ID != first[2*i].ID || r.Key != "a" {
			t.Errorf("record %d of the replay is %s of key %s, want %s", i, r.ID, r.Key, first[2*i].ID)
		}
	}
}

// written sets when the nth message of a key was written.
func written(t *testing.T, pool *pgxpool.Pool, key string, n int, at time.Time) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `
		UPDATE orders.outbox SET created_at = $3
		WHERE key = $1 AND payload = $2`, key, fmt.Appendf(nil, `{"n":%d}`, n), at); err != nil {
		t.Fatal(err)
	}
}

func TestReplayKeepsToItsTimesAndLeavesOutWhatWasNeverPublished(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	refuse, _ := poison("b", 3)
	broker := &outboxtest.Broker{Refuse: refuse}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for n := range 6 {
		write(t, db.Pool, message("orders", "a", n), message("orders", "b", n))
		written(t, db.Pool, "a", n, noon.Add(time.Duration(n)*time.Minute))
		written(t, db.Pool, "b", n, noon.Add(time.Duration(n)*time.Minute))
	}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	waitFor(t, broker, 9)
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) })
	parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
	if err != nil || len(parked) != 3 {
		t.Fatalf("parked %v, %v, want 3 messages", parked, err)
	}
	if err := outbox.Discard(t.Context(), db.Pool, schema, parked[0].ID, "ada", "test"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, broker, 11)
	eventually(t, func() error { // the leader has seen that the key is free
		parked, err := outbox.ListParked(t.Context(), db.Pool, schema)
		if err == nil && len(parked) > 0 {
			err = fmt.Errorf("%d messages are still parked", len(parked))
		}
		return err
	})

	opts := outbox.ReplayOptions{Since: noon.Add(time.Minute), Until: noon.Add(4 * time.Minute)}
	plan, err := outbox.PlanReplay(t.Context(), db.Pool, schema, opts)
	if want := (outbox.ReplayPlan{Messages: 5, RingSince: noon}); err != nil || !cmp.Equal(plan, want) {
		t.Errorf("PlanReplay = %+v, %v, want %+v", plan, err, want)
	}
	before := len(broker.Records())
	number, err := outbox.Replay(t.Context(), db.Pool, schema, opts)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		messages, done, err := outbox.ReplayDone(t.Context(), db.Pool, schema, number)
		if err == nil && !done {
			err = fmt.Errorf("replay has published %d messages and is not done", messages)
		}
		return err
	})
	got := fmt.Sprint(values(broker.Records()[before:], "a"), values(broker.Records()[before:], "b"))
	if want := `[{"n":1} {"n":2} {"n":3}] [{"n":1} {"n":2}]`; got != want {
		t.Errorf("published again %s, want %s: not the one that was discarded", got, want)
	}
}

func TestPlanOfAReplaySaysWhatHasLeftTheRing(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	write(t, db.Pool, message("orders", "a", 0), message("orders", "a", 1))
	written(t, db.Pool, "a", 0, noon)
	written(t, db.Pool, "a", 1, noon.Add(time.Hour))
	start(t, db.Pool, broker, outbox.RelayOptions{})
	waitFor(t, broker, 2)
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) })
	check := func(since time.Time, want outbox.ReplayPlan) {
		t.Helper()
		plan, err := outbox.PlanReplay(t.Context(), db.Pool, schema, outbox.ReplayOptions{Since: since})
		if err != nil || !cmp.Equal(plan, want) {
			t.Errorf("PlanReplay since %v = %+v, %v, want %+v", since, plan, err, want)
		}
	}
	check(noon.Add(-time.Hour), outbox.ReplayPlan{Messages: 2, RingSince: noon}) // nothing was there before
	if _, err := db.Pool.Exec(t.Context(), `DELETE FROM orders.outbox WHERE seq = 1`); err != nil {
		t.Fatal(err)
	}
	check(noon, outbox.ReplayPlan{Messages: 1, RingSince: noon.Add(time.Hour), Left: true})
	check(noon.Add(time.Hour), outbox.ReplayPlan{Messages: 1, RingSince: noon.Add(time.Hour)})
	if _, err := db.Pool.Exec(t.Context(), `TRUNCATE orders.outbox`); err != nil {
		t.Fatal(err)
	}
	check(noon, outbox.ReplayPlan{Left: true})
}

func TestReplayIsRefusedThatNobodyCouldDo(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	now := time.Now()
	for _, tc := range []struct {
		name string
		opts outbox.ReplayOptions
		want error // nil: any
	}{
		{"without a beginning", outbox.ReplayOptions{}, nil},
		{"that ends before it begins", outbox.ReplayOptions{Since: now, Until: now.Add(-time.Second)}, nil},
		{"by a relay that is not there", outbox.ReplayOptions{Relay: "nobody", Since: now}, outbox.ErrUnknownRelay},
	} {
		if _, err := outbox.Replay(t.Context(), db.Pool, schema, tc.opts); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("Replay %s = %v, want an error %v", tc.name, err, tc.want)
		}
		if _, err := outbox.PlanReplay(t.Context(), db.Pool, schema, tc.opts); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("PlanReplay %s = %v, want an error %v", tc.name, err, tc.want)
		}
	}
}
