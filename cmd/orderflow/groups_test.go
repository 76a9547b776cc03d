package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

// write puts records into partition 0 of a topic, one for each age.
func write(t *testing.T, broker *kafkatest.Broker, topic string, ages ...time.Duration) {
	t.Helper()
	client := broker.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, age := range ages {
		record := &kgo.Record{Topic: topic, Timestamp: time.Now().Add(-age), Value: []byte("{}")}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// commitOffset sets the offset of a group without members in partition 0 of a topic.
func commitOffset(t *testing.T, broker *kafkatest.Broker, group, topic string, at int64) {
	t.Helper()
	if err := kafka.SetOffsets(t.Context(), broker.Client(t), group, []kafka.Move{{Topic: topic, To: at}}); err != nil {
		t.Fatal(err)
	}
}

func TestGroupsLagTellsMonitors(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders, event.Shipments, "theirs")
	write(t, broker, event.Orders, 10*time.Minute, time.Minute, time.Minute)
	write(t, broker, "theirs", 0)
	commitOffset(t, broker, "order", event.Orders, 0)
	commitOffset(t, broker, "read", event.Orders, 3)
	commitOffset(t, broker, "theirs", "theirs", 0)
	commitOffset(t, broker, "lost", event.Shipments, 7)
	nowhere := unused(t)
	for _, tc := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"below both limits", []string{"order", "--fail-over", "3", "--fail-over-age", "1h"}, 0, "order", ""},
		{"too many records", []string{"order", "--fail-over", "2"}, 7, "order", "order is 3 records behind, more than 2"},
		{"too old", []string{"order", "read", "--fail-over-age", "5m"}, 7, "read", "order has a record that waits for 10m"},
		{"nothing waits", []string{"read", "--fail-over", "0", "--fail-over-age", "1ns"}, 0, "read", ""},
		{"a group of somebody else", []string{"theirs", "--fail-over", "0"}, 7, "theirs", "theirs is 1 records behind"},
		{"unknown is not below a limit", []string{"lost", "--fail-over", "10000"}, 7, "unknown", "the lag of lost is unknown: shipments/0: offset 7 is committed, the end is 0"},
		{"unknown is no success either", []string{"lost"}, 7, "unknown", "the lag of lost is unknown"},
		{"all groups", []string{"--fail-over", "3"}, 7, "theirs", "the lag of lost is unknown"},
		{"a group that does not exist", []string{"order", "nobody"}, 3, "", `no consumer group "nobody"`},
		{"a negative limit", []string{"--fail-over", "-3"}, 2, "", "--fail-over"},
		{"a negative age", []string{"--fail-over-age", "-3m"}, 2, "", "--fail-over-age"},
		{"a sample without end", []string{"--sample", "100h"}, 2, "", "--sample"},
		{"no Kafka", []string{"--kafka", nowhere}, 5, "", nowhere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"groups", "lag", "--kafka", strings.Join(broker.Addrs, ",")}, tc.args...)
			if tc.code == 5 {
				args = append([]string{"groups", "lag"}, tc.args...)
			}
			got := orderflow(t.Context(), args...)
			if got.code != tc.code || !strings.Contains(got.stdout, tc.stdout) || !strings.Contains(got.stderr, tc.stderr) {
				t.Errorf("orderflow %s = exit %d\n%s%swant exit %d, %q and %q", strings.Join(args, " "), got.code, got.stdout, got.stderr, tc.code, tc.stdout, tc.stderr)
			}
		})
	}
}

func TestGroupsShowLagAgeAndTrend(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders, event.Shipments)
	write(t, broker, event.Orders, 10*time.Minute, time.Minute)
	commitOffset(t, broker, "order", event.Orders, 0)
	commitOffset(t, broker, "lost", event.Shipments, 7)
	addrs := strings.Join(broker.Addrs, ",")

	got := orderflow(t.Context(), "groups", "list", "--kafka", addrs, "--sample", "10ms", "-o", "json")
	var docs []struct {
		Name    string
		Lag     *int64
		Age     *float64 `json:"age_seconds"`
		Unknown []string
		In      *float64 `json:"in_per_second"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &docs); err != nil || len(docs) != 2 {
		t.Fatalf("groups list = exit %d %s%s, %v; want two groups", got.code, got.stdout, got.stderr, err)
	}
	if lost := docs[0]; lost.Name != "lost" || lost.Lag != nil || lost.Age != nil || len(lost.Unknown) != 1 {
		t.Errorf("a group that committed beyond the end = %+v, want no lag, no age and one reason", lost)
	}
	if order := docs[1]; order.Lag == nil || *order.Lag != 2 || order.Age == nil || *order.Age < 600 || order.In == nil || *order.In != 0 {
		t.Errorf("group order = %s, want lag 2, an age of 600 s or more, and nothing written", got.stdout)
	}
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"describe", "order", "--sample", "10ms"}, []string{"10m", "stands still", "TREND", "AGE"}},
		{[]string{"describe", "lost"}, []string{"unknown", "the topic was made anew or has lost its end"}},
		{[]string{"list"}, []string{"10m", "unknown", "shipments/0: offset 7 is committed"}},
		{[]string{"lag", "order", "--sample", "10ms"}, []string{"TREND", "stands still"}},
	} {
		got := orderflow(t.Context(), append(append([]string{"groups"}, tc.args...), "--kafka", addrs)...)
		for _, want := range tc.want {
			if !strings.Contains(strings.ToUpper(got.stdout), strings.ToUpper(want)) {
				t.Errorf("groups %s has no %q:\n%s%s", strings.Join(tc.args, " "), want, got.stdout, got.stderr)
			}
		}
	}
}

func TestGroupsWatchAppendsLinesUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	client := broker.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for n := range 10 {
		key := "ada"
		if n >= 7 {
			key = "bob"
		}
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: event.Orders, Key: []byte(key), Value: []byte("{}")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	commitOffset(t, broker, "order", event.Orders, 0)
	watch := serveInBackground(t, "groups", "watch", "order", "--every", "100ms", "--kafka", strings.Join(broker.Addrs, ","))
	watch.says(`order state=Empty members=0 partitions=12 lag="10"`, "in=unknown/s", "in=0.0/s", `trend="stands still"`, `hot="-"`)
	commitOffset(t, broker, "order", event.Orders, 10)
	watch.says(`lag="0"`, `hot="ada 70% of orders/0"`, `trend="up to date"`)
	if code := watch.interrupt(); code != 0 {
		t.Errorf("exit %d after an interrupt, want 0:\n%s", code, watch.out.String())
	}
	if strings.Contains(watch.out.String(), "\x1b") {
		t.Errorf("control characters where there is no terminal: %q", watch.out.String())
	}
}

func TestGroupsWatchLeavesTheTerminalAsItWas(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	write(t, broker, event.Orders, time.Minute)
	commitOffset(t, broker, "order", event.Orders, 0)
	var screen buffer
	view := &groupsView{client: broker.Client(t), every: time.Millisecond, out: &output{w: &screen, format: "table"}, live: true}
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- view.run(ctx) }()
	waitUntil(t, "two frames were drawn", func() bool { return strings.Count(screen.String(), "\x1b[H") >= 2 })
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("run() = %v after an interrupt, want nil", err)
	}
	got := screen.String()
	if !strings.HasPrefix(got, "\x1b[?1049h\x1b[?25l") || !strings.HasSuffix(got, "\x1b[?25h\x1b[?1049l") {
		t.Errorf("screen = %q, want it to begin with the second screen, and to end with the first and the cursor", got)
	}
	for _, want := range []string{"HOT KEY", "order", "no members"} {
		if !strings.Contains(got, want) {
			t.Errorf("screen has no %q: %q", want, got)
		}
	}
}

func TestGroupsWatchRefusesWhatItCannotWatch(t *testing.T) {
	t.Parallel()
	broker := kafkatest.New(t, event.Orders)
	for _, tc := range []struct {
		args []string
		code int
	}{
		{[]string{"nobody"}, exitNotFound},
		{[]string{"--every", "0s"}, exitUsage},
		{[]string{"--every", "soon"}, exitUsage},
	} {
		args := append([]string{"groups", "watch", "--kafka", strings.Join(broker.Addrs, ",")}, tc.args...)
		if got := orderflow(t.Context(), args...); got.code != tc.code {
			t.Errorf("orderflow %s = exit %d, %s; want %d", strings.Join(args, " "), got.code, got.stderr, tc.code)
		}
	}
}
