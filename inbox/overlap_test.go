package inbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
)

// Two drainers have one message, because the first one's lease has run out. Its verdict comes too late to be one.
func TestAVerdictBehindALostLeaseSaysNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts, log := w.patient()
	first, second := make(chan struct{}), make(chan struct{})
	lost, booked := make(chan struct{}), make(chan struct{})
	calls := make(chan int, 2)
	calls <- 1
	calls <- 2
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Key != "u1" {
			return apply(ctx, tx, m)
		}
		if <-calls == 1 {
			close(first)
			<-lost
			return inbox.Permanent(errors.New("not valid"))
		}
		close(second)
		<-booked
		return apply(ctx, tx, m)
	}), opts)
	w.produce(record("u1", 1, "park"), record("next", 1, "park"))
	w.wait("both held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 2 })
	w.due("u1")
	<-first
	w.exec(`UPDATE inbox_holds SET leased_until = now() - interval '1 minute' WHERE key = 'u1'`)
	<-second
	close(lost)
	w.due("next") // which the first drainer works when it is through with its verdict
	w.wait("the first drainer's next key", func() bool { return len(w.effects("next")) == 1 })
	close(booked)
	w.wait("the second drainer's effect", func() bool { return len(w.effects("u1")) == 1 })
	w.wait("no holds", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
	w.wantNobodyDead()
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times, want never", n)
	}
}

// A message is being put behind the last one of a key while that one is drained: the hold must not go from under it.
func TestAHoldStaysForWhatIsBeingPutBehindIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts, log := w.patient()
	entered, release := make(chan struct{}), make(chan struct{})
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if what(m) == "park" {
			close(entered)
			<-release
		}
		return apply(ctx, tx, m)
	}), opts)
	w.produce(record("u1", 1, "park"))
	w.wait("held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1 })

	// Whoever parks from now on stops behind its insert while the test has the lock.
	w.exec(`
		CREATE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
		CREATE TRIGGER stop_here AFTER INSERT ON parked_messages FOR EACH ROW EXECUTE FUNCTION stop_here()`)
	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // after a commit this does nothing
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
		t.Fatal(err)
	}
	waiting := func(what string, n int) {
		w.wait(what, func() bool {
			return w.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == n
		})
	}
	w.due("u1")
	<-entered
	w.produce(record("u1", 2, ""))
	waiting("the second message to be parked, and not committed", 1)
	close(release)
	waiting("the drainer to wait for it", 2)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wait("both effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 2 })
	w.wantEffects("u1", 1, 2)
	w.wait("no holds", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times, want never", n)
	}
}

// What a batch has seen of the holds is true until it commits: no drainer claims a hold behind which it puts a message.
func TestNoDrainerWorksAHoldThatABatchHasSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts, log := w.patient()
	opts.BatchSize, opts.BatchWait = 2, time.Hour // a batch is two messages
	entered, release := make(chan struct{}), make(chan struct{})
	w.start(parkFirst(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Key == "slow" {
			close(entered)
			<-release
		}
		return apply(ctx, tx, m)
	}), opts)
	others := []string{"u2", "u3", "u4", "u5", "u6"}
	w.produce(record("u1", 1, "park"))
	for _, key := range others {
		w.produce(record(key, 1, "park"))
	}
	w.wait("held", func() bool { return len(w.parked(inbox.Filter{State: inbox.StateHeld})) == 1+len(others) })
	w.produce(record("u1", 2, ""), record("slow", 1, ""))
	<-entered
	w.due("u1")
	for _, key := range others { // one after the other: u1 has been due for longest each time
		w.due(key)
		w.wait("a drained key", func() bool { return len(w.effects(key)) == 1 })
	}
	if done := w.effects("u1"); len(done) != 0 {
		t.Errorf("effects %v of a key that a batch has seen held, before the batch has ended", done)
	}
	close(release)
	w.wait("all effects", func() bool { return len(w.effects("u1")) == 2 })
	w.wantEffects("u1", 1, 2)
	w.wait("no holds", func() bool { return w.count(`SELECT count(*) FROM inbox_holds`) == 0 })
	if n := log.containing(circuitOpened); n != 0 {
		t.Errorf("the consumer was paused %d times, want never", n)
	}
}
