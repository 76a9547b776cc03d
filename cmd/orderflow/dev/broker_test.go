package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// openBroker starts a broker with the topics.
func openBroker(t *testing.T, dir string) *broker {
	t.Helper()
	ln, _, err := listen(t.Context(), 0, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := startBroker(t.Context(), filepath.Join(dir, "kafka"), filepath.Join(dir, "refill"), ln, discard())
	if err != nil {
		t.Fatal(err)
	}
	if err := kafka.EnsureTopics(t.Context(), []string{b.addr}, kafka.TopicOptions{Configs: topicConfigs()}); err != nil {
		t.Fatal(err)
	}
	return b
}

func dial(t *testing.T, b *broker) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kafka.Options([]string{b.addr}, nil)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func produce(t *testing.T, b *broker, n int) {
	t.Helper()
	client := dial(t, b)
	for i := range n {
		record := &kgo.Record{Topic: event.Orders, Key: []byte("ada"), Value: []byte(fmt.Sprintf("message %d", i))}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func records(t *testing.T, b *broker) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ends, err := kadm.NewClient(dial(t, b)).ListEndOffsets(ctx, event.Orders)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum
}

func marked(t *testing.T, dir string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(dir, "refill"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestBrokerKeepsItsRecordsBetweenRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := openBroker(t, dir)
	if !marked(t, dir) {
		t.Error("a new log is not marked as lacking the records of earlier runs")
	}
	produce(t, first, 3)
	first.cluster.Close()
	if err := os.Remove(filepath.Join(dir, "refill")); err != nil {
		t.Fatal(err)
	}

	second := openBroker(t, dir)
	defer second.cluster.Close()
	if got := records(t, second); got != 3 {
		t.Errorf("after a restart the topic has %d records, want 3", got)
	}
	if marked(t, dir) || second.note != "" {
		t.Errorf("a log that is whole is marked to be filled again (note %q)", second.note)
	}
}

func TestBrokerMovesATornLogAside(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		tear func(t *testing.T, kafkaDir string)
	}{
		{"a segment has a hole in the middle", func(t *testing.T, kafkaDir string) {
			path := segment(t, kafkaDir)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			copy(raw[len(raw)/2:], make([]byte, 20))
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"a segment lost its end", func(t *testing.T, kafkaDir string) {
			path := segment(t, kafkaDir)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, info.Size()-7); err != nil {
				t.Fatal(err)
			}
		}},
		{"the description of the topics is cut off", func(t *testing.T, kafkaDir string) {
			if err := os.Truncate(filepath.Join(kafkaDir, "topics.json"), 20); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first := openBroker(t, dir)
			produce(t, first, 5)
			first.cluster.Close()
			if err := os.Remove(filepath.Join(dir, "refill")); err != nil {
				t.Fatal(err)
			}
			tc.tear(t, filepath.Join(dir, "kafka"))

			second := openBroker(t, dir)
			defer second.cluster.Close()
			if got := records(t, second); got != 0 {
				t.Errorf("the new log has %d records, want none", got)
			}
			if !marked(t, dir) {
				t.Error("the new log is not marked as lacking the records of earlier runs")
			}
			aside, err := filepath.Glob(filepath.Join(dir, "kafka.torn-*"))
			if err != nil || len(aside) != 1 || !strings.Contains(second.note, filepath.Base(aside[0])) {
				t.Errorf("moved aside: %v, %v, told %q; want the torn log, and that it is named", aside, err, second.note)
			}
		})
	}
}

// segment returns the one file that records were written to.
func segment(t *testing.T, kafkaDir string) string {
	t.Helper()
	var found string
	files, err := filepath.Glob(filepath.Join(kafkaDir, "partitions", "*", "*.dat"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Size() > 0 {
			found = file
		}
	}
	if found == "" {
		t.Fatalf("no segment with records among %v", files)
	}
	return found
}
