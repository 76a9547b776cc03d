package outbox_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
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
	var txid int64
	if err := db.Pool.QueryRow(t.Context(), `SELECT max(txid)::text::bigint FROM orders.outbox`).Scan(&txid); err != nil {
		t.Fatal(err)
	}
	for _, statistics := range []string{"not analysed", "analysed"} {
		if statistics == "analysed" {
			if _, err := db.Pool.Exec(t.Context(), `ANALYZE orders.outbox`); err != nil {
				t.Fatal(err)
			}
		}
		// All rows are of one transaction, which began after the one snapshot and was open at the other.
		for _, prev := range []string{"100:100:", fmt.Sprintf("%d:%d:%d", txid, txid+1, txid)} {
			plan := explainPoll(t, db.Pool.Config().ConnConfig, prev)
			for slot := range 8 {
				checkScans(t, statistics, plan, slot)
			}
			for _, slow := range []string{"Seq Scan on outbox_", "Bitmap", "Sort (", "JIT"} {
				if strings.Contains(plan, slow) {
					t.Errorf("%s: the plan has a %s:\n%s", statistics, slow, plan)
				}
			}
		}
	}
}

func checkScans(t *testing.T, statistics, plan string, slot int) {
	t.Helper()
	leaf := regexp.MustCompile(fmt.Sprintf(
		`Index Scan using outbox_%d_txid_seq_idx on outbox_%d .*?(?:rows=(\d+)|never executed)`, slot, slot))
	scans := leaf.FindAllStringSubmatch(plan, -1)
	if len(scans) != 2 {
		t.Errorf("%s: leaf %d is read by %d index scans, want one for each branch:\n%s", statistics, slot, len(scans), plan)
	}
	for _, scan := range scans { // of the 2,500 rows of each leaf
		if rows, _ := strconv.Atoi(scan[1]); rows > 500 {
			t.Errorf("%s: a scan of leaf %d reads %d rows, want it to stop at the limit:\n%s", statistics, slot, rows, plan)
		}
	}
}

// explainPoll returns the generic plan of the query inside the poll function, under the function's own settings, and what
// it does from the snapshot prev.
func explainPoll(t *testing.T, config *pgx.ConnConfig, prev string) string {
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
	rows, _ := conn.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF) EXECUTE poll ('`+prev+`')`)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
