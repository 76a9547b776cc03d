package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrNoGroup is returned by [Describe] for a consumer group that Kafka does not know.
var ErrNoGroup = errors.New("no such consumer group")

// Group is where a consumer group stands.
type Group struct {
	Name       string      `json:"name"`
	At         time.Time   `json:"at"` // when it was looked at
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
	// Start is the offset of the first record that Kafka still has.
	Start *int64 `json:"start"`
	// End is the offset of the next record to be written.
	End *int64 `json:"end"`
	// Lag is End minus Committed; without a committed offset it counts from Start. Records that were removed before they
	// were read make it unknown.
	Lag *int64 `json:"lag"`
	// Oldest is when the oldest unfinished record was written, by its own timestamp; nil when Lag is 0 or unknown, and when
	// Error says why.
	Oldest *time.Time `json:"oldest"`
	// Error says why a number is missing.
	Error string `json:"error,omitempty"`
}

// Age returns how long the oldest unfinished record has been waiting at a time: 0 when none waits. ok is false when that is
// unknown.
func (p Partition) Age(at time.Time) (age time.Duration, ok bool) {
	switch {
	case p.Lag == nil:
		return 0, false
	case *p.Lag == 0:
		return 0, true
	case p.Oldest == nil:
		return 0, false
	}
	return max(0, at.Sub(*p.Oldest)), true
}

// Lag returns the sum of the partitions' lags. ok is false when one of them is unknown; lag is then the sum of the others.
func (g Group) Lag() (lag int64, ok bool) {
	ok = g.known()
	for _, p := range g.Partitions {
		if p.Lag == nil {
			ok = false
			continue
		}
		lag += *p.Lag
	}
	return lag, ok
}

// Age returns the age of the oldest unfinished record of all partitions. ok is false when that of one is unknown; age is
// then that of the oldest known.
func (g Group) Age() (age time.Duration, ok bool) {
	ok = g.known()
	for _, p := range g.Partitions {
		a, known := p.Age(g.At)
		ok = ok && known
		age = max(age, a)
	}
	return age, ok
}

// known is false for a group of which nothing can be said: also one that reads no topic, such as one without members whose
// topics were deleted.
func (g Group) known() bool { return g.Error == "" && len(g.Partitions) > 0 }

// Unknown says why Lag or Age is unknown, each reason once.
func (g Group) Unknown() []string {
	switch {
	case g.Error != "":
		return []string{g.Error}
	case len(g.Partitions) == 0:
		return []string{"it has no members and has committed nothing in a topic that is there"}
	}
	var reasons []string
	first := map[string]int{}
	more := map[string]int{}
	for i, p := range g.Partitions {
		if p.Error == "" {
			continue
		}
		if _, seen := first[p.Error]; !seen {
			first[p.Error] = i
			reasons = append(reasons, p.Error)
			continue
		}
		more[p.Error]++
	}
	for i, reason := range reasons {
		p := g.Partitions[first[reason]]
		reasons[i] = fmt.Sprintf("%s/%d: %s", p.Topic, p.Partition, reason)
		if more[reason] > 0 {
			reasons[i] += fmt.Sprintf(" (and %d more partitions)", more[reason])
		}
	}
	return reasons
}

// Groups returns the consumer groups that Kafka knows, by name.
func Groups(ctx context.Context, client *kgo.Client) ([]Group, error) {
	listed, err := kadm.NewClient(client).ListGroups(ctx)
	if err != nil {
		return nil, fmt.Errorf("list consumer groups: %w", err)
	}
	var names []string
	for _, group := range listed.Sorted() {
		// Others, such as those of Kafka Connect's workers, read no topics. "" is a group that never had members.
		if group.ProtocolType == "consumer" || group.ProtocolType == "" {
			names = append(names, group.Group)
		}
	}
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
	now := time.Now()
	var groups []Group
	for _, lag := range lags.Sorted() {
		group := newGroup(lag)
		group.At = now
		switch err := lag.Error(); {
		case errors.Is(err, kerr.GroupIDNotFound):
			group.State = "Dead"
		case err != nil:
			group.Error = err.Error()
		}
		groups = append(groups, group)
	}
	if err := ages(ctx, client, groups); err != nil {
		return nil, fmt.Errorf("look for the oldest unfinished records: %w", err)
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

// refusal returns what a broker has refused with, nil when err is something else: then none has answered.
func refusal(err error) error {
	if refused, ok := errors.AsType[*kerr.Error](err); ok {
		return refused
	}
	return nil
}

func newPartition(l kadm.GroupMemberLag) Partition {
	p := Partition{Topic: l.Topic, Partition: l.Partition}
	if l.Member != nil {
		p.Member = l.Member.MemberID
	}
	if l.Commit.At >= 0 {
		p.Committed = &l.Commit.At
	}
	if l.Start.Err == nil && l.Start.Offset >= 0 {
		p.Start = &l.Start.Offset
	}
	if l.End.Err == nil && l.End.Offset >= 0 {
		p.End = &l.End.Offset
	}
	switch {
	case errors.Is(l.Err, kerr.UnknownTopicOrPartition):
		p.Error = "the topic was deleted, or has no such partition any more"
	case refusal(l.Err) != nil:
		p.Error = refusal(l.Err).Error()
	case l.Err != nil:
		p.Error = "no broker answers for it"
	case p.End == nil:
		p.Error = "its end is not known"
	case p.Committed != nil && *p.Committed > *p.End:
		p.Error = fmt.Sprintf("offset %d is committed, the end is %d: the topic was made anew or has lost its end", *p.Committed, *p.End)
	case p.Committed != nil && p.Start != nil && *p.Committed < *p.Start:
		p.Error = fmt.Sprintf("%d records were removed unread, by the topic's retention: offset %d is committed, the first one kept is %d",
			*p.Start-*p.Committed, *p.Committed, *p.Start)
	case p.Committed == nil && p.Start == nil:
		p.Error = "nothing is committed, and the first record is not known"
	default:
		p.Lag = &l.Lag
	}
	return p
}
