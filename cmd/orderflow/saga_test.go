package main

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// halt puts an order's saga where a person is needed: at its charge, in this state, with its stock held.
func halt(t *testing.T, db *pgtest.DB, state, intentID string) string {
	t.Helper()
	id := uuid.Must(uuid.NewV7()).String()
	stuckFor := "error"
	if state != "stuck" {
		stuckFor = ""
	}
	for _, statement := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO orders.saga_lanes (lane, pending) VALUES ($1, 1)`, []any{"user-" + id}},
		{`INSERT INTO orders.saga_instances (id, lane, definition, version, data, state, step, step_name, stuck_for, started_at, error)
		  VALUES ($1, $2, 'place-order', 1, '{}', $3, 2, 'charge payment', nullif($4, ''), now(), 'no answer')`,
			[]any{id, "user-" + id, state, stuckFor}},
		{`INSERT INTO orders.saga_journal (saga_id, step, undo, name, state, key, intent_at, saved)
		  VALUES ($1, 2, false, 'charge payment', 'unknown', $3, now(), nullif($2, '')::jsonb)`, []any{id, saved(intentID), id + ":charge payment:1"}},
	} {
		if _, err := db.Pool.Exec(t.Context(), statement.sql, statement.args...); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

func saved(intentID string) string {
	if intentID == "" {
		return ""
	}
	return `{"intent_id":"` + intentID + `"}`
}

func TestAPersonSettlesASaga(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for _, tt := range []struct {
		name, state, intent string
		args                []string
		after               string
		answer              string // what the engine is told about the charge
	}{
		{"a stuck saga is tried again", "stuck", "", []string{"retry"}, "running", ""},
		{"one in doubt is asked about again", "in_doubt", "", []string{"retry"}, "in_doubt", ""},
		{"the charge happened", "in_doubt", "pi_7", []string{"resolve", "--charged"}, "in_doubt", `"intent_id": "pi_7"`},
		{"the charge happened, under an id that only the provider knew", "stuck", "", []string{"resolve", "--charged", "--intent", "pi_8"}, "stuck", `"intent_id": "pi_8"`},
		{"the charge did not happen", "in_doubt", "pi_7", []string{"resolve", "--not-charged"}, "in_doubt", `never`},
		{"a saga is turned round", "in_doubt", "pi_7", []string{"compensate"}, "compensating", ""},
		{"a step is passed over", "stuck", "pi_7", []string{"skip"}, "running", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id := halt(t, db, tt.state, tt.intent)
			args := slices.Concat([]string{"saga"}, tt.args, []string{id, "--database-url", db.URL, "-o", "json"})
			if got := orderflow(t.Context(), args...); got.code != exitUsage || !strings.Contains(got.stderr, "--reason") {
				t.Errorf("without a reason: exit %d, %s; want %d", got.code, got.stderr, exitUsage)
			}
			args = append(args, "--reason", "seen by ops")
			var before, after historyDoc
			if got := orderflow(t.Context(), args...); got.code != 0 || !strings.Contains(got.stderr, "--rev 0 --yes") || json.Unmarshal([]byte(got.stdout), &before) != nil {
				t.Fatalf("without --yes: exit %d, %s%s; want the saga and --yes", got.code, got.stdout, got.stderr)
			}
			if string(before.State) != tt.state || len(before.Audit) != 0 {
				t.Errorf("without --yes the saga is %s with %d interventions, want it as it was", before.State, len(before.Audit))
			}
			args = append(args, "--yes")
			if tt.args[0] != "retry" {
				if got := orderflow(t.Context(), args...); got.code != exitUsage || !strings.Contains(got.stderr, "--rev") {
					t.Errorf("without the revision that was looked at: exit %d, %s; want %d", got.code, got.stderr, exitUsage)
				}
			}
			if got := orderflow(t.Context(), append(args, "--rev", "77")...); got.code != exitConflict {
				t.Errorf("of another revision: exit %d, %s; want %d", got.code, got.stderr, exitConflict)
			}
			got := orderflow(t.Context(), append(args, "--rev", strconv.FormatInt(before.Rev, 10))...)
			if got.code != 0 || json.Unmarshal([]byte(got.stdout), &after) != nil {
				t.Fatalf("exit %d, %s%s; want the saga", got.code, got.stdout, got.stderr)
			}
			if string(after.State) != tt.after || len(after.Audit) != 1 || after.Audit[0].Reason != "seen by ops" || after.Audit[0].Action != tt.args[0] {
				t.Errorf("afterwards it is %s, audit %+v; want %s and one %s", after.State, after.Audit, tt.after, tt.args[0])
			}
			var answer string
			err := db.Pool.QueryRow(t.Context(), `
				SELECT coalesce(answer::text, '') FROM orders.saga_journal WHERE saga_id = $1`, id).Scan(&answer)
			if err != nil || !strings.Contains(answer, tt.answer) || (answer == "") != (tt.answer == "") {
				t.Errorf("the engine is told %q, %v; want %q", answer, err, tt.answer)
			}
		})
	}
}

func TestSagaCommandsRefuseWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	stuck, unknown := halt(t, db, "stuck", ""), uuid.NewString()
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"show", "no-id"}, exitUsage, "not the id of an order"},
		{[]string{"show", unknown}, exitNotFound, unknown},
		{[]string{"list", "--state", "lost"}, exitUsage, "in_doubt"},
		{[]string{"list", "--limit", "0"}, exitUsage, "--limit"},
		{[]string{"resolve", stuck, "--reason", "r", "--yes"}, exitUsage, "--charged or --not-charged"},
		{[]string{"resolve", stuck, "--charged", "--not-charged", "--reason", "r"}, exitUsage, "--charged or --not-charged"},
		{[]string{"resolve", stuck, "--not-charged", "--intent", "pi_1", "--reason", "r"}, exitUsage, "--intent"},
		{[]string{"resolve", stuck, "--charged", "--reason", "r", "--rev", "0", "--yes"}, exitConflict, "--intent"},
		{[]string{"resolve", stuck, "--refunded", "re_1", "--reason", "r", "--rev", "0", "--yes"}, exitConflict, "has sent no refund"},
		{[]string{"resolve", stuck, "--refunded", "re_1", "--charged", "--reason", "r", "--yes"}, exitUsage, "--charged or --not-charged"},
		{[]string{"resolve", stuck, "--refunded", "", "--reason", "r", "--rev", "1", "--yes"}, exitUsage, "--refunded"},
		{[]string{"resolve", stuck, "--refunded", "--rev=1", "--reason", "r", "--yes"}, exitUsage, "--refunded"},
		{[]string{"resolve", stuck, "--charged=false", "--reason", "r", "--rev", "1", "--yes"}, exitUsage, "--charged"},
		{[]string{"resolve", stuck, "--not-charged=false", "--reason", "r", "--rev", "1", "--yes"}, exitUsage, "--not-charged"},
		{[]string{"resolve", stuck, "--not-refunded=false", "--reason", "r", "--rev", "1", "--yes"}, exitUsage, "--not-refunded"},
		{[]string{"resolve", stuck, "--charged", "--intent", "", "--reason", "r", "--rev", "1", "--yes"}, exitUsage, "--intent"},
		{[]string{"retry", unknown, "--reason", "r", "--yes"}, exitNotFound, unknown},
	} {
		got := orderflow(t.Context(), slices.Concat([]string{"saga"}, tt.args, []string{"--database-url", db.URL})...)
		if got.code != tt.code || !strings.Contains(got.stderr, tt.says) {
			t.Errorf("saga %v = exit %d, %s; want %d and %q", tt.args, got.code, got.stderr, tt.code, tt.says)
		}
	}
}

func TestSagasAreListedAndShown(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	if got := orderflow(t.Context(), "saga", "list", "--database-url", db.URL); got.code != 0 || got.stdout != "no such sagas\n" {
		t.Errorf("saga list of none = exit %d, %s%s", got.code, got.stdout, got.stderr)
	}
	stuck, doubtful := halt(t, db, "stuck", ""), halt(t, db, "in_doubt", "pi_7")
	got := orderflow(t.Context(), "saga", "list", "--state", "stuck", "--database-url", db.URL)
	if got.code != 0 || !strings.Contains(got.stdout, stuck) || strings.Contains(got.stdout, doubtful) {
		t.Errorf("saga list --state stuck = exit %d, %s%s; want %s only", got.code, got.stdout, got.stderr, stuck)
	}
	got = orderflow(t.Context(), "saga", "show", doubtful, "--database-url", db.URL)
	for _, want := range []string{"in_doubt", "charge payment: unknown", "no answer", doubtful + ":charge payment:1"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("saga show does not say %q:\n%s%s", want, got.stdout, got.stderr)
		}
	}
}
