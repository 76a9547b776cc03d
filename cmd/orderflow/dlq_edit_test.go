package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
)

// shipped returns the orders of a user's shipments, in the order in which they were made.
func (s *shop) shipped(user string) []uuid.UUID {
	s.Helper()
	rows, _ := s.db.Pool.Query(s.Context(), `SELECT order_id FROM warehouse.shipments WHERE user_id = $1 ORDER BY created_at`, user) // CollectRows reports the error
	orders, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		s.Fatal(err)
	}
	return orders
}

// deadName returns the name of the only dead letter.
func (s *shop) deadName() string {
	s.Helper()
	s.waitForDead(1)
	return "warehouse/" + strconv.Itoa(s.count(`SELECT id FROM warehouse.parked_messages WHERE state = 'dead'`))
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// F19: poison, mended by a person, takes its place between the message before it and those behind it.
func TestAPoisonMessageIsEditedAndReplayedInItsPlace(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	orders := []uuid.UUID{uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())}
	m1, m2, m3 := completed(t, "ada", orders[0]), completed(t, "ada", orders[1]), completed(t, "ada", orders[2])
	poison := bytes.Replace(m2, []byte(`"quantity":1`), []byte(`"quantity":-1`), 1)
	s.publish("ada", m1)
	waitUntil(t, "the first shipment", func() bool { return len(s.shipped("ada")) == 1 })
	records := s.publish("ada", poison)
	name := s.deadName()
	s.publish("ada", m3)
	waitUntil(t, "the third behind it", func() bool {
		return s.count(`SELECT count(*) FROM warehouse.parked_messages WHERE state = 'waiting'`) == 1
	})

	newer := file(t, m2)
	plan := s.dlq("edit", name, "--file", newer, "--reason", "minus sign")
	if plan.code != 0 || !strings.Contains(plan.stdout, `-       "quantity": -1`) || !strings.Contains(plan.stdout, `+       "quantity": 1`) || !strings.Contains(plan.stderr, "--yes") {
		t.Errorf("edit without --yes = exit %d, %s%s; want the difference", plan.code, plan.stdout, plan.stderr)
	}
	if got := s.dlq("replay", name, "--yes", "--wait"); got.code != exitPartial || !strings.Contains(got.stderr, "1 failed again") {
		t.Errorf("replay after a mere plan to edit = exit %d, %s; want it to fail again", got.code, got.stderr)
	}
	if got := s.dlq("edit", name, "--file", newer, "--reason", "minus sign", "--yes"); got.code != 0 || !strings.Contains(got.stderr, "orderflow dlq replay "+name) {
		t.Fatalf("edit = exit %d, %s%s", got.code, got.stdout, got.stderr)
	}
	s.wantShown(name, m2, poison)
	if got := s.dlq("replay", name, "--yes", "--wait"); got.code != 0 || !strings.Contains(got.stderr, "1 handled") {
		t.Errorf("replay = exit %d, %s; want it handled", got.code, got.stderr)
	}
	waitUntil(t, "the third shipment", func() bool { return len(s.shipped("ada")) == 3 })

	// The record as it was comes again, and a message after it, which shows that it was read.
	again := &kgo.Record{Topic: records[0].Topic, Key: records[0].Key, Value: records[0].Value, Headers: records[0].Headers}
	if err := s.client.ProduceSync(t.Context(), again).FirstErr(); err != nil {
		t.Fatal(err)
	}
	orders = append(orders, uuid.Must(uuid.NewV7()))
	s.publish("ada", completed(t, "ada", orders[3]))
	waitUntil(t, "the fourth shipment", func() bool { return len(s.shipped("ada")) == 4 })
	if got := s.shipped("ada"); !slices.Equal(got, orders) {
		t.Errorf("shipments of orders %v, want each once, in the order %v", got, orders)
	}
	if n := s.count(`SELECT count(*) FROM warehouse.parked_messages`); n != 0 {
		t.Errorf("%d messages are parked, want none: the record is a duplicate", n)
	}
}

// wantShown checks what dlq show says of a message that was edited once.
func (s *shop) wantShown(name string, payload, original []byte) {
	s.Helper()
	for _, tc := range []struct {
		args []string
		want []byte
	}{{nil, payload}, {[]string{"--original"}, original}} {
		got := s.dlq(append([]string{"show", name, "-o", "json"}, tc.args...)...)
		var doc struct {
			Payload string
			Edits   []editDoc
		}
		if err := json.Unmarshal([]byte(got.stdout), &doc); err != nil || doc.Payload != string(tc.want) || len(doc.Edits) != 1 || doc.Edits[0].Reason != "minus sign" || doc.Edits[0].By == "" {
			s.Errorf("show %v = exit %d, %s%s, %v; want payload %s and one edit", tc.args, got.code, got.stdout, got.stderr, err, tc.want)
		}
	}
}

func TestAMisuseOfEditSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	valid := completed(t, "ada", uuid.Must(uuid.NewV7()))
	s.publish("ada", []byte("{"), valid)
	name := s.deadName()
	waitUntil(t, "one behind it", func() bool { return s.count(`SELECT count(*) FROM warehouse.parked_messages`) == 2 })
	waiting := "warehouse/" + strconv.Itoa(s.count(`SELECT id FROM warehouse.parked_messages WHERE state = 'waiting'`))
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"no reason", []string{name, "--file", file(t, valid)}, exitUsage, "--reason is required"},
		{"no file and no terminal", []string{name, "--reason", "x"}, exitUsage, "--file"},
		{"a file that is not there", []string{name, "--reason", "x", "--file", "/nowhere"}, exitUsage, "/nowhere"},
		{"a message that waits", []string{waiting, "--reason", "x", "--file", file(t, valid)}, exitConflict, "waits behind another"},
		{"a message that is not parked", []string{"warehouse/999", "--reason", "x", "--file", file(t, valid)}, exitNotFound, "warehouse/999"},
		{"a payload that nobody can read", []string{name, "--reason", "x", "--file", file(t, []byte("{{")), "--yes"}, exitFailure, "payload is not JSON"},
		{"the same payload", []string{name, "--reason", "x", "--file", file(t, []byte("{")), "--yes"}, 0, "nothing changed"},
	} {
		if got := s.dlq(append([]string{"edit"}, tc.args...)...); got.code != tc.code || !strings.Contains(got.stderr, tc.stderr) {
			t.Errorf("%s: exit %d, %s; want %d and %q", tc.name, got.code, got.stderr, tc.code, tc.stderr)
		}
	}
}

func TestAnEditorGetsJSONLaidOutAndGivesItBackCompact(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "editor")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsed -i 's/^  \"a\": 1/  \"a\": 2/' \"$2\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for before, want := range map[string]string{
		`{"a":1,"b":[1]}`:    `{"a":2,"b":[1]}`,
		"{\n  \"a\": 1\n}\n": "{\n  \"a\": 2\n}\n",
		"no JSON":            "no JSON",
	} {
		if got, err := inEditor(t.Context(), script+" --wait", []byte(before)); err != nil || string(got) != want {
			t.Errorf("%q edited = %q, %v; want %q", before, got, err, want)
		}
	}
	if _, err := inEditor(t.Context(), "false", []byte("x")); err == nil {
		t.Error("an editor that fails: no error, want the edit given up")
	}
}

func TestADiffShowsWhatChangedWithSomeLinesAround(t *testing.T) {
	t.Parallel()
	o := &output{}
	for _, tc := range []struct{ name, before, after, want string }{
		{"a line in the middle", "1\n2\n3\n4\n5\n6\n7\n8\n9", "1\n2\n3\n4\nfive\n6\n7\n8\n9", "  …\n  2\n  3\n  4\n- 5\n+ five\n  6\n  7\n  8\n  …\n"},
		{"a line more", "a\nc", "a\nb\nc", "  a\n+ b\n  c\n"},
		{"a line less", "a\nb\nc", "a\nc", "  a\n- b\n  c\n"},
		{"what both share stays", "a\nb\nc\nd", "b\nx\nd\ne", "- a\n  b\n- c\n+ x\n  d\n+ e\n"},
	} {
		if got := o.diffText(tc.before, tc.after); got != tc.want {
			t.Errorf("%s:\n%swant\n%s", tc.name, got, tc.want)
		}
	}
	long := strings.Repeat("x\ny\n", 2000)
	if got := len(diffLines(strings.Split("a\n"+long+"b", "\n"), strings.Split("c\n"+long+"d", "\n"))); got != 2*4002 {
		t.Errorf("a difference too large to look for what is shared has %d lines, want all of both", got)
	}
}

// I19: each death has its copy, and a copy does not grow from one death to the next.
func TestCopiesOfADeadLetterKeepItsBytesAndDoNotGrow(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.serve("relay", "--warehouse-database-url", s.db.RoleURL("warehouse_relay"), "--ops-addr", unused(t))
	payload := []byte("{\"caf\xc3\x00\xff")
	sent := s.publish("ada", payload)[0]
	name := s.deadName()
	for death := 2; death <= 4; death++ {
		if got := s.dlq("replay", name, "--yes", "--wait"); got.code != exitPartial {
			t.Fatalf("replay = exit %d, %s; want it dead again", got.code, got.stderr)
		}
	}
	copies := s.consume(event.DeadLetters("warehouse"), 4)
	var first []string
	for i, c := range copies {
		if !bytes.Equal(c.Value, payload) || !bytes.Equal(c.Key, sent.Key) {
			t.Errorf("copy %d has key %q and payload %q, want those of the record: %q %q", i+1, c.Key, c.Value, sent.Key, payload)
		}
		headers := map[string]string{}
		for _, h := range c.Headers {
			if _, twice := headers[h.Key]; twice {
				t.Errorf("copy %d has header %s twice", i+1, h.Key)
			}
			headers[h.Key] = string(h.Value)
		}
		if headers["x-attempts"] != strconv.Itoa(i+1) || headers["x-tenant"] != "shop" || headers["x-event-id"] != string(sent.Headers[1].Value) {
			t.Errorf("copy %d: headers %v, want %d attempts, the record's own x-tenant and its id", i+1, headers, i+1)
		}
		names := slices.Sorted(maps.Keys(headers))
		if first == nil {
			first = names
		}
		if !slices.Equal(names, first) {
			t.Errorf("copy %d has headers %v, want those of the first: %v", i+1, names, first)
		}
	}
}

// consume reads n records of a topic from its beginning, in the order of their offsets.
func (s *shop) consume(topic string, n int) []*kgo.Record {
	s.Helper()
	client := s.broker.Client(s.T, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50*time.Millisecond))
	ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			s.Fatalf("%d of %d records of %s: %v", len(records), n, topic, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}
