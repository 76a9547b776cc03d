package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrNoGroup is returned by [Describe] for a consumer group that Kafka does not know.
var ErrNoGroup = errors.New("no such consumer group")

// Group is where a consumer group stands.
type Group struct {
	Name       string      `json:"name"`
	State      string      `json:"state"`
	Members    []Member    `json:"members"`
	Partitions []Partition `json:"partitions"`
	// Error says why nothing else is known of the group.
	Error string `json:"error,omitempty"`
}

// Member is one running consumer of a group.
type Member struct {
	ID         string `json:"id"`
	ClientID   string `json:"client_id"`
	Host       string `json:"host"`
	Partitions int    `json:"partitions"`
}

// Partition is where a group stands in one partition. A number that is not known is nil, never 0: a lag of 0 means that
// everything was read.
type Partition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// Member is the id of the member that has the partition, "" when none has.
	Member string `json:"member"`
	// Committed is the offset to resume at, nil when the group has committed none in this partition.
	Committed *int64 `json:"committed"`
	// End is the offset of the next record to be written.
	End *int64 `json:"end"`
	// Lag is End minus Committed; without a committed offset the group starts at the first record, and it counts from there.
	Lag *int64 `json:"lag"`
	// Error says why a number is missing.
	Error string `json:"error,omitempty"`
}

// Lag returns the sum of the partitions' lags. ok is false when one of them is unknown.
func (g Group) Lag() (lag int64, ok bool) {
	ok = g.Error == ""
	for _, p := range g.Partitions {
		if p.Lag == nil {
			ok = false
			continue
		}
		lag += *p.Lag
	}
	return lag, ok
}

// Groups returns the consumer groups that Kafka knows, by name.
func Groups(ctx context.Context, client *kgo.Client) ([]Group, error) {
	listed, err := kadm.NewClient(client).ListGroups(ctx)
	if err != nil {
		return nil, fmt.Errorf("list consumer groups: %w", err)
	}
	names := listed.Groups()
	if len(names) == 0 {
		return nil, nil
	}
	return describe(ctx, client, names)
}

// Describe returns where one consumer group stands, [ErrNoGroup] when there is none of that name.
func Describe(ctx context.Context, client *kgo.Client, group string) (Group, error) {
	groups, err := describe(ctx, client, []string{group})
	if err != nil {
		return Group{}, err
	}
	switch {
	// Kafka answers for a group it has never heard of with the state Dead.
	case len(groups) == 0, groups[0].State == "Dead" && len(groups[0].Partitions) == 0:
		return Group{}, fmt.Errorf("describe consumer group %s: %w", group, ErrNoGroup)
	case groups[0].Error != "":
		return Group{}, fmt.Errorf("describe consumer group %s: %s", group, groups[0].Error)
	}
	return groups[0], nil
}

func describe(ctx context.Context, client *kgo.Client, names []string) ([]Group, error) {
	lags, err := kadm.NewClient(client).Lag(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("describe consumer groups: %w", err)
	}
	var groups []Group
	for _, lag := range lags.Sorted() {
		group := newGroup(lag)
		switch err := lag.Error(); {
		case errors.Is(err, kerr.GroupIDNotFound):
			group.State = "Dead"
		case err != nil:
			group.Error = err.Error()
		}
		groups = append(groups, group)
	}
	return groups, nil
}

func newGroup(lag kadm.DescribedGroupLag) Group {
	group := Group{Name: lag.Group, State: lag.State, Members: []Member{}, Partitions: []Partition{}}
	owned := map[string]int{}
	for _, l := range lag.Lag.Sorted() {
		p := newPartition(l)
		if p.Member != "" {
			owned[p.Member]++
		}
		group.Partitions = append(group.Partitions, p)
	}
	for _, m := range lag.Members {
		group.Members = append(group.Members, Member{ID: m.MemberID, ClientID: m.ClientID, Host: m.ClientHost, Partitions: owned[m.MemberID]})
	}
	return group
}

func newPartition(l kadm.GroupMemberLag) Partition {
	p := Partition{Topic: l.Topic, Partition: l.Partition}
	if l.Member != nil {
		p.Member = l.Member.MemberID
	}
	if l.Commit.At >= 0 {
		p.Committed = &l.Commit.At
	}
	if l.End.Err == nil && l.End.Offset >= 0 {
		p.End = &l.End.Offset
	}
	switch {
	case l.Err != nil:
		p.Error = l.Err.Error()
	// Without a commit the lag counts from the first record, so that one must be known.
	case l.Lag >= 0 && p.End != nil && (p.Committed != nil || l.Start.Err == nil):
		p.Lag = &l.Lag
	}
	return p
}
