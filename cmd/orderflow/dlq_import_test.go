package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
)

func letters(t *testing.T, export string) []letterDoc {
	t.Helper()
	var docs []letterDoc
	for line := range strings.Lines(export) {
		if _, is := readEnd([]byte(line)); is {
			continue
		}
		var doc letterDoc
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		docs = append(docs, doc)
	}
	return docs
}

func TestWhatIsExportedCanBeImportedOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	orders := []uuid.UUID{uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())}
	s.publish("ada", []byte("\xff\x00{"), completed(t, "ada", orders[1]))
	name := s.deadName()
	if got := s.dlq("edit", name, "--file", file(t, completed(t, "ada", orders[0])), "--reason", "mended", "--yes"); got.code != 0 {
		t.Fatalf("edit = exit %d, %s", got.code, got.stderr)
	}
	waitUntil(t, "one behind it", func() bool { return s.count(`SELECT count(*) FROM warehouse.parked_messages`) == 2 })
	exported := s.dlq("export")
	before := letters(t, exported.stdout)
	if len(before) != 2 || string(before[0].Edits[0].Payload) != "\xff\x00{" || !strings.Contains(exported.stderr, "2 messages were exported") {
		t.Fatalf("export = exit %d, %s%s; want two lines, the first with its edit", exported.code, exported.stdout, exported.stderr)
	}
	if got := letters(t, s.dlq("export", "--state", "dead", "--key", "ada").stdout); len(got) != 1 || got[0].ID != name {
		t.Errorf("export of the dead ones = %+v, want %s alone", got, name)
	}

	if _, err := s.db.Pool.Exec(t.Context(), `
		TRUNCATE warehouse.parked_messages, warehouse.inbox_holds, warehouse.processed_messages, warehouse.inbox_edits, warehouse.inbox_audit`); err != nil {
		t.Fatal(err)
	}
	dump := file(t, []byte(exported.stdout+exported.stdout)) // everything twice
	imports := func(said string, code int, args ...string) {
		t.Helper()
		if got := s.dlq(append([]string{"import", dump}, args...)...); got.code != code || !strings.Contains(got.stdout+got.stderr, said) {
			t.Errorf("import %v = exit %d, %s%s; want %d and %q", args, got.code, got.stdout, got.stderr, code, said)
		}
	}
	imports("2 of 4 messages would be imported", 0)
	imports("2 of 4 messages would be imported", 0, "--yes", "--dry-run")
	imports("it is on line 1 too", 0)
	if n := s.count(`SELECT (SELECT count(*) FROM warehouse.parked_messages) + (SELECT count(*) FROM warehouse.processed_messages)`); n != 0 {
		t.Fatalf("%d rows after a dry run, want none", n)
	}
	imports("2 of 4 messages were imported, dead", 0, "--yes")
	imports("already known: parked, and dead", 0, "--yes")
	imports(`"reason": "already known: parked, and dead"`, 0, "--yes", "-o", "json")

	after := letters(t, s.dlq("export").stdout)
	ignored := cmpopts.IgnoreFields(parkedDoc{}, "ID", "State", "NextTryAt")
	if diff := cmp.Diff(before, after, ignored, cmp.AllowUnexported(letterDoc{}, letterEdit{})); diff != "" {
		t.Errorf("what is exported after the import differs (-before +after):\n%s", diff)
	}
	if got := s.dlq("replay", "--group", "warehouse", "--wait", "--yes"); got.code != 0 || !strings.Contains(got.stderr, "2 handled") {
		t.Errorf("replay = exit %d, %s; want both handled", got.code, got.stderr)
	}
	if got := s.shipped("ada"); !slices.Equal(got, orders) {
		t.Errorf("shipments of orders %v, want %v", got, orders)
	}
	imports("already known: done", 0, "--yes")
	if _, err := s.db.Pool.Exec(t.Context(), `UPDATE warehouse.processed_messages SET payload_hash = 'other'`); err != nil {
		t.Fatal(err)
	}
	imports("its id has another payload", exitPartial, "--yes")
}

func TestABadExportIsRefusedAsAWhole(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.publish("ada", []byte("{"))
	s.waitForDead(1)
	whole := s.dlq("export").stdout
	good, end, _ := strings.Cut(whole, "\n")
	good += "\n"
	if _, err := s.db.Pool.Exec(t.Context(), `TRUNCATE warehouse.parked_messages, warehouse.inbox_holds, warehouse.processed_messages`); err != nil {
		t.Fatal(err)
	}
	with := func(old, replaced string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("no %s in %s", old, good)
		}
		return good + strings.Replace(good, old, replaced, 1)
	}
	for _, tc := range []struct {
		name, content string
		code          int
		stderr        string
	}{
		{"a line that is cut off", good + good[:len(good)/2], exitUsage, "line 2: the line is cut off"},
		{"another version", with(`"version":1`, `"version":2`), exitUsage, "line 2: version 2; this program reads version 1"},
		{"no version", good + "\n{}\n", exitUsage, "line 3: no document of `orderflow dlq export`"},
		{"no JSON", good + "ID  STATE\n", exitUsage, "line 2: no JSON"},
		{"two documents on a line", strings.TrimSpace(good) + good, exitUsage, "line 1"},
		{"an unknown field", with(`"version":1`, `"version":1,"x":1`), exitUsage, `line 2: json: unknown field "x"`},
		{"an unknown group", with(`"group":"warehouse"`, `"group":"shop"`), exitUsage, `line 2: unknown consumer group "shop"`},
		{"a payload that is not base64", with(`"payload":"`, `"payload":"%`), exitUsage, "line 2: illegal base64"},
		{"another id", with(`"message_id":"`, `"message_id":"x`), exitUsage, "line 2: message_id is no UUIDv7"},
		{"no topic", with(`"topic":"orders.completed"`, `"topic":""`), exitUsage, "line 2: topic, key"},
		{"a key that is not its record's", strings.TrimPrefix(with(`"key":"ada"`, `"key":"eve"`), good), exitFailure, "line 1: message"},
	} {
		if got := s.dlq("import", file(t, []byte(tc.content)), "--yes", "--partial"); got.code != tc.code || !strings.Contains(got.stderr, tc.stderr) {
			t.Errorf("%s: exit %d, %s; want %d and %q", tc.name, got.code, got.stderr, tc.code, tc.stderr)
		}
	}
	for _, tc := range []struct{ name, content, stderr string }{
		{"cut between two lines", good, "has no last line"},
		{"cut behind a whole one", whole + good, "has no last line"},
		{"nothing", "", "has no last line"},
		{"a line too few", end, "line 1: it counts 1 messages, and other ones than the 0 before it"},
		{"a line too many", good + whole, "line 3: it counts 1 messages, and other ones than the 2 before it"},
		{"another line", strings.Replace(whole, `"attempts":1`, `"attempts":7`, 1), "line 2: it counts 1 messages, and other ones than the 1 before it"},
	} {
		if got := s.dlq("import", file(t, []byte(tc.content)), "--yes"); got.code != exitUsage || !strings.Contains(got.stderr, tc.stderr) {
			t.Errorf("%s: exit %d, %s; want %d and %q", tc.name, got.code, got.stderr, exitUsage, tc.stderr)
		}
	}
	if got := s.dlq("import", "/nowhere.jsonl"); got.code != exitUsage || !strings.Contains(got.stderr, "/nowhere.jsonl") {
		t.Errorf("a file that is not there: exit %d, %s; want %d", got.code, got.stderr, exitUsage)
	}
	if n := s.count(`SELECT count(*) FROM warehouse.parked_messages`); n != 0 {
		t.Errorf("%d messages parked after nothing but bad files, want 0", n)
	}
}

// contents are all rows of the inbox and the outbox, for who wants to know that nothing has changed.
func (s *shop) contents() (rows string) {
	s.Helper()
	err := s.db.Pool.QueryRow(s.Context(), `
		SELECT coalesce(string_agg(row, E'\n' ORDER BY row), '')
		FROM (
			SELECT 'parked ' || t FROM warehouse.parked_messages t
			UNION ALL SELECT 'hold ' || t FROM warehouse.inbox_holds t
			UNION ALL SELECT 'processed ' || t FROM warehouse.processed_messages t
			UNION ALL SELECT 'edit ' || t FROM warehouse.inbox_edits t
			UNION ALL SELECT 'audit ' || t FROM warehouse.inbox_audit t
			UNION ALL SELECT 'outbox ' || t FROM warehouse.outbox t
		) AS t (row)`).Scan(&rows)
	if err != nil {
		s.Fatal(err)
	}
	return rows
}

func TestACutOffExportIsTakenInPartsAndNothingOfItTwice(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, user := range []string{"ada", "bob"} {
		s.publish(user, []byte("{"))
	}
	s.waitForDead(2)
	whole := s.dlq("export").stdout
	first, _, _ := strings.Cut(whole, "\n")
	if _, err := s.db.Pool.Exec(t.Context(), `
		TRUNCATE warehouse.parked_messages, warehouse.inbox_holds, warehouse.processed_messages, warehouse.inbox_edits, warehouse.inbox_audit`); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, content string
		code          int
		says          string
		changes       bool
		more          []string
	}{
		{"cut behind its first message", first + "\n", exitUsage, "it was cut off", false, nil},
		{"the same, as it is", first + "\n", 0, "1 of 1 messages were imported", true, []string{"--partial"}},
		{"the same again", first + "\n", 0, "0 of 1 messages were imported", false, []string{"--partial"}},
		{"the whole file", whole, 0, "1 of 2 messages were imported", true, nil},
		{"the whole file again", whole, 0, "0 of 2 messages were imported", false, nil},
		{"the whole file again, as it is", whole, 0, "0 of 2 messages were imported", false, []string{"--partial"}},
	} {
		before := s.contents()
		got := s.dlq(append([]string{"import", file(t, []byte(tc.content)), "--yes"}, tc.more...)...)
		if got.code != tc.code || !strings.Contains(got.stderr, tc.says) {
			t.Errorf("%s: exit %d, %s; want %d and %q", tc.name, got.code, got.stderr, tc.code, tc.says)
		}
		diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(s.contents(), "\n"))
		if (diff != "") != tc.changes {
			t.Errorf("%s: rows have changed: %t, want %t\n%s", tc.name, diff != "", tc.changes, diff)
		}
	}
}
