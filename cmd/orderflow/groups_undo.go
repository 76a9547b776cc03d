package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/kafka"
)

// undoFile is what a rewind writes before it changes anything.
type undoFile struct {
	Version int        `json:"version"`
	Cluster string     `json:"cluster"` // Kafka's id
	Group   string     `json:"group"`
	At      time.Time  `json:"at"`
	By      string     `json:"by"`
	Offsets []undoMove `json:"offsets"`
}

type undoMove struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Before    int64  `json:"before"` // what --undo puts back
	After     int64  `json:"after"`
}

const undoVersion = 1

// undoPath is where this rewind writes its file.
func (r *rewind) undoPath() string {
	if path := stringFlag(r.cmd, "undo-file"); path != "" {
		return path
	}
	return fmt.Sprintf("orderflow-undo-%s-%s.json", r.group, time.Now().UTC().Format("20060102T150405Z"))
}

// writeUndoFile makes a new file, and has it on disk when it returns.
func (r *rewind) writeUndoFile(path string, moves []kafka.Move) error {
	doc := undoFile{Version: undoVersion, Cluster: r.cluster, Group: r.group, At: time.Now().UTC(), By: operator()}
	for _, m := range moves {
		doc.Offsets = append(doc.Offsets, undoMove{Topic: m.Topic, Partition: m.Partition, Before: m.From, After: m.To})
	}
	content, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // never over an older one, which may be needed
	if err != nil {
		return fmt.Errorf("make the file for --undo: %w", err)
	}
	defer f.Close()
	if _, err = f.Write(append(content, '\n')); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the file for --undo: %w", err)
	}
	return nil
}

func readUndoFile(path string) (*undoFile, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, usage("", "read the file to undo by: %w", err)
	}
	var doc undoFile
	if err := json.Unmarshal(content, &doc); err != nil || doc.Version != undoVersion || doc.Group == "" || len(doc.Offsets) == 0 {
		return nil, usage("name a file that `orderflow groups rewind --yes` has written", "%s is no file to undo a rewind by", path)
	}
	return &doc, nil
}

// plan returns what differs from the offsets that the file puts back. One beyond the end of its partition is refused: the
// topic is not what it was.
func (u *undoFile) plan(ctx context.Context, client *kgo.Client) ([]kafka.Move, error) {
	now, err := kafka.Committed(ctx, client, u.Group)
	if err != nil {
		return nil, err
	}
	var topics kadm.TopicsSet
	for _, m := range u.Offsets {
		topics.Add(m.Topic, m.Partition)
	}
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topics.Topics()...)
	if err != nil {
		return nil, fmt.Errorf("look for the ends of the topics: %w", err)
	}
	var moves []kafka.Move
	for _, m := range u.Offsets {
		end, found := ends.Lookup(m.Topic, m.Partition)
		if !found || end.Err != nil || m.Before < 0 || m.Before > end.Offset {
			return nil, fail(exitConflict, "", "%s/%d has no offset %d: the topic was deleted or made anew since", m.Topic, m.Partition, m.Before)
		}
		if o, _ := now.Lookup(m.Topic, m.Partition); o.At != m.Before {
			moves = append(moves, kafka.Move{Topic: m.Topic, Partition: m.Partition, From: o.At, To: m.Before})
		}
	}
	return moves, nil
}
