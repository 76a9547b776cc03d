package outbox_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// The poll must not slow down with what is in the ring, whatever the statistics say: each branch must be an index scan
// on every leaf, merged, and stop at its limit.
func TestPollFunctionReadsEveryLeafByItsIndex(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	// The worst case for the planner: a lot of rows, and statistics that say there are none.
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
		SELECT n % 8, gen_random_uuid(), 'orders', 'a', 't', 'c', 'payload' FROM generate_series(1, 20000) AS n`); err != nil {
		t.Fatal(err)
	}
	for _, statistics := range []string{"not analysed", "analysed"} {
		if statistics == "analysed" {
			if _, err := db.Pool.Exec(t.Context(), `ANALYZE orders.outbox`); err != nil {
				t.Fatal(err)
			}
		}
		plan := explainPoll(t, db.Pool.Config().ConnConfig)
		for slot := range 8 {
			leaf := regexp.MustCompile(fmt.Sprintf(`Index Scan using outbox_%d_txid_seq_idx on outbox_%d`, slot, slot))
			if n := len(leaf.FindAllString(plan, -1)); n != 2 {
				t.Errorf("%s: leaf %d is read by %d index scans, want one for each branch:\n%s", statistics, slot, n, plan)
			}
		}
		for _, slow := range []string{"Seq Scan on outbox_0", "Bitmap", "Sort  ", "JIT"} {
			if strings.Contains(plan, slow) {
				t.Errorf("%s: the plan has a %s:\n%s", statistics, slow, plan)
			}
		}
	}
}

// explainPoll returns the generic plan of the query inside the poll function, under the function's own settings.
func explainPoll(t *testing.T, config *pgx.ConnConfig) string {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var source string
	var settings []string
	if err := conn.QueryRow(t.Context(), `
		SELECT prosrc, proconfig FROM pg_proc WHERE proname = 'outbox_poll'`).Scan(&source, &settings); err != nil {
		t.Fatal(err)
	}
	// Without them another ring, with other statistics, has another plan.
	pinned := "plan_cache_mode=force_generic_plan enable_seqscan=off enable_bitmapscan=off enable_sort=off jit=off"
	for want := range strings.FieldsSeq(pinned) {
		if !slices.Contains(settings, want) {
			t.Errorf("the function's settings are %v, want %s among them", settings, want)
		}
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		if _, err := conn.Exec(t.Context(), `SELECT set_config($1, $2, false)`, name, value); err != nil {
			t.Fatal(err)
		}
	}
	_, query, _ := strings.Cut(source, "RETURN QUERY")
	query, _, found := strings.Cut(query, ";")
	if !found {
		t.Fatalf("no query in %s", source)
	}
	query = strings.ReplaceAll(query, "p_prev", "$1")
	if _, err := conn.Exec(t.Context(), `PREPARE poll (pg_snapshot) AS `+query); err != nil {
		t.Fatal(err)
	}
	rows, _ := conn.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF) EXECUTE poll ('100:100:')`)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
