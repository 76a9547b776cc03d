package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrNothingCommitted is returned by [PlanRewind] when the group has no offset in what was asked for.
var ErrNothingCommitted = errors.New("the group has committed nothing there")

// ErrOffsetRange is returned by [PlanRewind] for an offset that cannot be rewound to.
var ErrOffsetRange = errors.New("the offset is out of range")

// ErrGroupHasMembers is returned by [SetOffsets]: Kafka takes offsets from outside only while a group has no members.
var ErrGroupHasMembers = errors.New("the group has members")

// Move is a change of a group's offset in one partition.
type Move struct {
	Topic     string
	Partition int32
	From, To  int64
}

// RewindTo says where to rewind to: the first record kept (the zero value), the first record written at Time or later, or
// one offset.
type RewindTo struct {
	Time   time.Time
	Offset *int64
	// Topic and Partition narrow it down: "" and -1 are all.
	Topic     string
	Partition int32
}

// PlanRewind returns what a rewind changes, by topic and partition. It never moves an offset forward, and leaves out
// partitions that need no change and topics that were deleted.
func PlanRewind(ctx context.Context, client *kgo.Client, group string, to RewindTo) ([]Move, error) {
	admin := kadm.NewClient(client)
	committed, err := Committed(ctx, client, group)
	if err != nil {
		return nil, err
	}
	committed.KeepFunc(func(o kadm.Offset) bool {
		return (to.Topic == "" || o.Topic == to.Topic) && (to.Partition < 0 || o.Partition == to.Partition)
	})
	if len(committed) == 0 {
		return nil, fmt.Errorf("plan a rewind of %s: %w", group, ErrNothingCommitted)
	}
	topics := committed.TopicsSet().Topics()
	starts, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("look for the first records: %w", err)
	}
	targets := starts
	if !to.Time.IsZero() {
		if targets, err = admin.ListOffsetsAfterMilli(ctx, to.Time.UnixMilli(), topics...); err != nil {
			return nil, fmt.Errorf("look for the records of %s: %w", to.Time.Format(time.RFC3339), err)
		}
	}
	var moves []Move
	there := false
	for _, o := range committed.Sorted() {
		start, known := starts.Lookup(o.Topic, o.Partition)
		target, alike := targets.Lookup(o.Topic, o.Partition)
		if err := errors.Join(start.Err, target.Err); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return nil, fmt.Errorf("look into %s/%d: %w", o.Topic, o.Partition, err)
		} else if err != nil || !known || !alike {
			continue // deleted
		}
		there = true
		if to.Offset != nil {
			if *to.Offset < start.Offset || *to.Offset > o.At {
				return nil, fmt.Errorf("rewind %s/%d to %d: %w: %d is the first record kept, %d is committed", o.Topic, o.Partition, *to.Offset, ErrOffsetRange, start.Offset, o.At)
			}
			target.Offset = *to.Offset
		}
		if target.Offset < o.At {
			moves = append(moves, Move{Topic: o.Topic, Partition: o.Partition, From: o.At, To: target.Offset})
		}
	}
	if !there {
		return nil, fmt.Errorf("plan a rewind of %s: its topics were deleted: %w", group, ErrNothingCommitted)
	}
	return moves, nil
}

// Committed returns the offsets that a group has committed.
func Committed(ctx context.Context, client *kgo.Client, group string) (kadm.Offsets, error) {
	responses, err := kadm.NewClient(client).FetchOffsets(ctx, group)
	if err == nil {
		err = responses.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return kadm.Offsets{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the offsets of group %s: %w", group, err)
	}
	return responses.Offsets(), nil
}

// SetOffsets commits the targets of moves, for a group without members, and reads them back.
func SetOffsets(ctx context.Context, client *kgo.Client, group string, moves []Move) error {
	offsets := kadm.Offsets{}
	for _, m := range moves {
		offsets.AddOffset(m.Topic, m.Partition, m.To, -1)
	}
	responses, err := kadm.NewClient(client).CommitOffsets(ctx, group, offsets)
	if err == nil {
		err = responses.Error()
	}
	switch {
	// Who asks from outside is no member, and has no generation.
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.RebalanceInProgress):
		return fmt.Errorf("commit offsets of group %s: %w: %w", group, ErrGroupHasMembers, err)
	case err != nil:
		return fmt.Errorf("commit offsets of group %s: %w", group, err)
	}
	now, err := Committed(ctx, client, group)
	if err != nil {
		return err
	}
	var differ []error
	for _, m := range moves {
		if o, found := now.Lookup(m.Topic, m.Partition); !found || o.At != m.To {
			differ = append(differ, fmt.Errorf("%s/%d is at %d after %d was committed", m.Topic, m.Partition, o.At, m.To))
		}
	}
	return errors.Join(differ...)
}

// GroupMembers names who is in a group, as client@host. It is nil when nobody is, or there is no such group.
func GroupMembers(ctx context.Context, client *kgo.Client, group string) ([]string, error) {
	groups, err := kadm.NewClient(client).DescribeGroups(ctx, group)
	if err == nil {
		err = groups[group].Err
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("look for the members of group %s: %w", group, err)
	}
	described := groups[group]
	if described.State == "Empty" || described.State == "Dead" || described.State == "" {
		return nil, nil
	}
	names := []string{}
	for _, m := range described.Members {
		names = append(names, m.ClientID+"@"+strings.TrimPrefix(m.ClientHost, "/"))
	}
	if len(names) == 0 {
		names = append(names, "one that joins")
	}
	return names, nil
}

// ClusterID returns the id by which Kafka's clusters are told apart.
func ClusterID(ctx context.Context, client *kgo.Client) (string, error) {
	meta, err := kadm.NewClient(client).BrokerMetadata(ctx)
	if err != nil {
		return "", fmt.Errorf("ask Kafka for its cluster id: %w", err)
	}
	return meta.Cluster, nil
}
