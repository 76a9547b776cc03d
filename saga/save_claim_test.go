package saga

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

// A call that lost its lane, and the call of the engine that took it in the same process, may share a save. Only the second one's
// is committed, and the first must hear that it has to stop.
func TestAFencedCallIsNotToldThatItsSuccessorsProgressIsItsOwn(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, Migrations(), "public")
	id, old, now := uuid.New(), uuid.New(), uuid.New()
	for _, sql := range []string{
		`INSERT INTO saga_lanes (lane, pending, token, rev) VALUES ('anna', 1, '` + now.String() + `', 2)`,
		`INSERT INTO saga_journal (saga_id, step, undo, name, state, intent_at) VALUES ('` + id.String() + `', 0, false, 'charge', 'intent', now())`,
	} {
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	of := func(token uuid.UUID, rev int64, progress string) *save {
		return &save{call: &Call{saga: id, claim: claim{"anna", token, rev}}, progress: &progress}
	}
	fenced, successor := of(old, 1, `"old"`), of(now, 2, `"new"`)
	s := saver{pool: db.Pool}
	committed := s.store(t.Context(), []*save{fenced, successor})
	if committed[fenced.call.under()] || !committed[successor.call.under()] {
		t.Errorf("store = %v, want the successor's progress alone", committed)
	}
	var saved json.RawMessage
	if err := db.Pool.QueryRow(t.Context(), `SELECT saved FROM saga_journal`).Scan(&saved); err != nil || string(saved) != `"new"` {
		t.Errorf("the journal has %s, %v, want the successor's", saved, err)
	}
}
