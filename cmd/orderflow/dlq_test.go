package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// park puts a dead message aside and returns its name. headers is the column's JSON.
func park(t *testing.T, db *pgtest.DB, group, key string, payload []byte, headers string) string {
	t.Helper()
	var id int64
	err := db.Pool.QueryRow(t.Context(), fmt.Sprintf(`
		WITH hold AS (
			INSERT INTO %[1]s.inbox_holds (consumer_group, topic, key, state, parked, type, next_at)
			VALUES ($1, 'orders', $2, 'dead', 1, 'order.placed.v1', now())
		)
		INSERT INTO %[1]s.parked_messages (consumer_group, topic, key, hold_key, kafka_partition, kafka_offset, event_id, type,
		                                   record_time, headers, payload, state, error_class, error, fingerprint)
		VALUES ($1, 'orders', $2, $2, 0, 7, gen_random_uuid(), 'order.placed.v1', now(), $3::jsonb, $4, 'dead', 'undecodable', 'no', 'f00d')
		RETURNING id`, schemaOf(group)), group, key, headers, payload).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s/%d", group, id)
}

func TestShowGivesBackTheBytesOfAMessage(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for name, payload := range map[string][]byte{
		"text": []byte(`{"name":"<Ada> & Ω"}`), "control characters": []byte("a\x00b\u2028"), "no text": []byte("\xff\xfe{"),
		"half a character": []byte("caf\xc3"), "empty": {}, "null": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := park(t, db, "order", name, payload, `[{"key":"a","value":"b"},{"key":"bytes","base64":"//4="},{"key":"empty","value":""},{"key":"null"}]`)
			got := orderflow(t.Context(), "dlq", "show", id, "--database-url", db.URL, "-o", "json")
			var doc struct {
				ID      string
				Headers []struct {
					Key   string
					Value *string
					Bytes []byte `json:"value_base64"`
				}
				Payload *string
				Bytes   []byte `json:"payload_base64"`
			}
			if err := json.Unmarshal([]byte(got.stdout), &doc); err != nil || got.code != 0 || doc.ID != id {
				t.Fatalf("dlq show %s = %d %s %s, %v", id, got.code, got.stdout, got.stderr, err)
			}
			if back := bytesOf(doc.Payload, doc.Bytes); !bytes.Equal(back, payload) || (back == nil) != (payload == nil) {
				t.Errorf("payload %q is shown as %q:\n%s", payload, back, got.stdout)
			}
			if !strings.Contains(got.stdout, `"payload`) {
				t.Errorf("a null payload is left out:\n%s", got.stdout)
			}
			var headers []string
			for _, h := range doc.Headers {
				headers = append(headers, fmt.Sprintf("%s=%#v", h.Key, bytesOf(h.Value, h.Bytes)))
			}
			want := `a=[]byte{0x62} bytes=[]byte{0xff, 0xfe} empty=[]byte{} null=[]byte(nil)`
			if shown := strings.Join(headers, " "); shown != want {
				t.Errorf("headers = %s, want %s", shown, want)
			}
		})
	}
}

// bytesOf reads what show gives as text or in base64.
func bytesOf(text *string, encoded []byte) []byte {
	if text != nil {
		return []byte(*text)
	}
	return encoded
}

func TestResolvingSomeOfSeveralExitsWith6(t *testing.T) {
	t.Parallel()
	const nothing = `[]`
	for _, tc := range []struct {
		name   string
		args   func(first, second string) []string
		broken string // a table that takes no row
		code   int
		stderr string
	}{
		{"all are discarded", func(a, b string) []string { return []string{"discard", a, b, "--reason", "test"} }, "", 0, "2 messages were discarded"},
		{"the second is gone already", func(a, _ string) []string { return []string{"discard", a, a, "--reason", "test"} }, "", 6, "1 of 2 messages were discarded"},
		{"the second cannot be discarded", func(a, b string) []string { return []string{"discard", a, b, "--reason", "test"} }, "warehouse.inbox_audit", 6, "1 of 2"},
		{"none can be discarded", func(a, b string) []string { return []string{"discard", b, a, "--reason", "test"} }, "warehouse.inbox_audit", 1, "0 of 2"},
		{"all are replayed", func(a, b string) []string { return []string{"replay", a, b} }, "", 0, "2 messages were handed back"},
		{"the second cannot be replayed", func(a, b string) []string { return []string{"replay", b, a} }, "warehouse.inbox_audit", 6, "1 of 2 messages were handed back"},
		{"the only one cannot be replayed", func(_, b string) []string { return []string{"replay", b} }, "warehouse.inbox_audit", 1, "0 of 1"},
		{"one is named twice", func(a, _ string) []string { return []string{"replay", a, a} }, "", 6, "1 of 2 messages were handed back"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			db := migrated.New(t)
			first, second := park(t, db, "order", "u1", []byte("{"), nothing), park(t, db, "warehouse", "u1", []byte("{"), nothing)
			if tc.broken != "" {
				if _, err := db.Pool.Exec(t.Context(), `ALTER TABLE `+tc.broken+` ADD CHECK (false)`); err != nil {
					t.Fatal(err)
				}
			}
			args := append([]string{"dlq"}, append(tc.args(first, second), "--yes", "--database-url", db.URL)...)
			if got := orderflow(t.Context(), args...); got.code != tc.code || !strings.Contains(got.stderr, tc.stderr) {
				t.Errorf("orderflow %s = exit %d, %s; want exit %d and %q", strings.Join(args[:4], " "), got.code, got.stderr, tc.code, tc.stderr)
			}
		})
	}
}

func TestGroupsLeadToTheirMessages(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	park(t, db, "order", "u1", nil, `[]`)
	other := park(t, db, "warehouse", "u1", nil, `[]`)
	last := park(t, db, "warehouse", "u2", nil, `[]`)
	if _, err := db.Pool.Exec(t.Context(), `UPDATE warehouse.parked_messages SET fingerprint = 'cafe', error = 'other' WHERE key = 'u2'`); err != nil {
		t.Fatal(err)
	}
	dlq := func(args ...string) string {
		t.Helper()
		got := orderflow(t.Context(), append(append([]string{"dlq"}, args...), "--database-url", db.URL)...)
		if got.code != 0 {
			t.Fatalf("dlq %v = exit %d, %s", args, got.code, got.stderr)
		}
		return got.stdout
	}
	var docs []parkedGroupDoc
	if err := json.Unmarshal([]byte(dlq("groups", "-o", "json")), &docs); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, d := range docs {
		found = append(found, fmt.Sprint(d.Group, " ", d.Class, " ", d.Fingerprint, " ", d.Dead, d.Held, d.Waiting, d.Keys, " ", d.Error))
	}
	slices.Sort(found)
	want := []string{"order undecodable f00d 1 0 0 1 no", "warehouse undecodable cafe 1 0 0 1 other", "warehouse undecodable f00d 1 0 0 1 no"}
	if !slices.Equal(found, want) {
		t.Errorf("dlq groups = %q, want %q", found, want)
	}
	if got := dlq("groups", "--group", "warehouse", "--fingerprint", "cafe"); !strings.Contains(got, "other") || strings.Count(got, "\n") != 2 {
		t.Errorf("groups of one fingerprint: %s; want a header and one line", got)
	}
	if got := dlq("list", "--fingerprint", "cafe"); !strings.Contains(got, last) || strings.Contains(got, other) {
		t.Errorf("list of one fingerprint: %s; want %s alone", got, last)
	}
	if got := dlq("groups", "--state", "held"); got != "nothing is parked\n" {
		t.Errorf("groups of held messages: %s; want none", got)
	}
}

func TestDiscardTakesFiltersAndTheAuditSaysWho(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	first, second := park(t, db, "order", "u1", nil, `[]`), park(t, db, "warehouse", "u1", nil, `[]`)
	held := park(t, db, "order", "u2", nil, `[]`)
	for _, statement := range []string{
		`UPDATE orders.parked_messages SET state = 'held' WHERE key = 'u2'`,
		`INSERT INTO orders.inbox_audit (at, action, consumer_group, topic, key, event_id, reason, by)
		 VALUES (now() - interval '2 hours', 'discard', 'order', 'orders', 'u9', gen_random_uuid(), 'superseded', 'handler')`,
	} {
		if _, err := db.Pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	dlq := func(code int, args ...string) result {
		t.Helper()
		got := orderflow(t.Context(), append(append([]string{"dlq"}, args...), "--database-url", db.URL)...)
		if got.code != code {
			t.Fatalf("dlq %v = exit %d, %s; want %d", args, got.code, got.stderr, code)
		}
		return got
	}
	dlq(exitUsage, "discard", "--reason", "test", "--yes")
	dlq(exitUsage, "discard", first, "--group", "order", "--reason", "test", "--yes")
	if got := dlq(0, "discard", "--fingerprint", "f00d", "--reason", "test", "--yes", "--dry-run"); !strings.Contains(got.stderr, "2 messages would be discarded") {
		t.Errorf("discard --dry-run: %s; want the two dead ones", got.stderr)
	}
	if got := dlq(0, "discard", "--fingerprint", "f00d", "--reason", "by hand", "--yes"); !strings.Contains(got.stderr, "2 messages were discarded") {
		t.Errorf("discard of a fingerprint: %s; want the two dead ones", got.stderr)
	}
	if got := dlq(0, "list"); !strings.Contains(got.stdout, held) || strings.Contains(got.stdout, first) || strings.Contains(got.stdout, second) {
		t.Errorf("parked after the discard: %s; want %s alone", got.stdout, held)
	}
	dlq(0, "discard", "--key", "u2", "--state", "held", "--reason", "by hand", "--yes")

	audit := func(args ...string) (entries []string) {
		t.Helper()
		var docs []parkedAuditDoc
		if err := json.Unmarshal([]byte(dlq(0, append([]string{"audit", "-o", "json"}, args...)...).stdout), &docs); err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			if d.By == operator() {
				d.By = "me"
			}
			entries = append(entries, fmt.Sprint(d.Action, " ", d.ID, " by ", d.By, ": ", d.Reason))
		}
		return entries
	}
	byHand := func(name string) string { return "discard " + name + " by me: by hand" }
	all := []string{"discard  by handler: superseded", byHand(first), byHand(second), byHand(held)}
	if got := audit(); !slices.Equal(got, all) {
		t.Errorf("audit = %q, want %q", got, all)
	}
	if got, want := audit("--group", "order", "--since", "1h"), []string{byHand(first), byHand(held)}; !slices.Equal(got, want) {
		t.Errorf("the group's audit of an hour = %q, want %q", got, want)
	}
	if got := dlq(exitUsage, "audit", "--since", "yesterday"); !strings.Contains(got.stderr, "90m") {
		t.Errorf("audit since some day: %s; want how to write it", got.stderr)
	}
}
