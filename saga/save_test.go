package saga_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/saga"
)

// saving starts a call for each progress, the first of which finds its row locked until unlock, with the others behind it. The
// calls return what Save said when the test ends them.
type saving struct {
	first  uuid.UUID
	unlock func()
	said   []chan error
}

func saveBehindALock(t *testing.T, progress ...any) (*saving, func() int) {
	t.Helper()
	pool := database(t)
	s := &saving{said: make([]chan error, len(progress))}
	for n := range s.said {
		s.said[n] = make(chan error, 1)
	}
	first, done := make(chan struct{}), make(chan struct{})
	var begun atomic.Int32
	call := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
		var n int
		if err := in.Decode(&n); err != nil {
			return nil, err
		}
		if n == 0 {
			first <- struct{}{} // its intent is there
			<-first             // and locked
		}
		begun.Add(1)
		s.said[n] <- call.Save(ctx, progress[n])
		<-done
		return nil, nil
	}
	query := func(context.Context, *saga.Instance, *saga.Call) (saga.Answer, error) {
		return saga.FoundSucceeded(nil), nil
	}
	def := saga.Define("save", 1, saga.Remote("call", call).Query(query).Timeout(deadline).Pivot())
	begin := func(n int) {
		in := saga.NewInstance{ID: uuid.Must(uuid.NewV7()), Lane: fmt.Sprint("user-", n), Definition: "save", Version: 1, Data: n}
		if n == 0 {
			s.first = in.ID
		}
		start(t, pool, in)
	}
	begin(0)
	engine(t, pool, quick(), def)
	t.Cleanup(func() { close(done) })
	<-first
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	if _, err := tx.Exec(t.Context(), `SELECT FROM saga_journal WHERE saga_id = $1 FOR UPDATE`, s.first); err != nil {
		t.Fatal(err)
	}
	first <- struct{}{}
	until(t, "the first save waits for its row", func() bool {
		return count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	for n := 1; n < len(progress); n++ {
		begin(n)
	}
	until(t, "the others save", func() bool { return int(begun.Load()) == len(progress) })
	s.unlock = func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	transactions := func() int {
		return count(t, pool, `SELECT count(DISTINCT xmin::text) FROM saga_journal WHERE saved IS NOT NULL`)
	}
	return s, transactions
}

func TestCallsThatSaveMeanwhileShareATransaction(t *testing.T) {
	t.Parallel()
	progress := make([]any, 20)
	for i := range progress {
		progress[i] = map[string]int{"n": i}
	}
	s, transactions := saveBehindALock(t, progress...)
	s.unlock()
	for n, said := range s.said {
		if err := <-said; err != nil {
			t.Errorf("Save of call %d = %v, want nil", n, err)
		}
	}
	// Some may have come when the next transaction had begun.
	if n := transactions(); n > 10 {
		t.Errorf("20 saves in %d transactions, want a few", n)
	}
}

func TestProgressThatCannotBeStoredFailsItsOwnCallOnly(t *testing.T) {
	t.Parallel()
	s, _ := saveBehindALock(t, 0, 1, json.RawMessage(`"\u0000"`), 3)
	s.unlock()
	for n, said := range s.said {
		if err := <-said; (err != nil) != (n == 2) {
			t.Errorf("Save of call %d = %v, want an error of call 2 only", n, err)
		}
	}
}
