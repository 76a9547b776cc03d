package kafkatest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Roster is how a consumer group of static members has shared out its partitions.
type Roster struct {
	// Generation is the number of the sharing: every rebalance counts it up, also one that moves nothing.
	Generation int32
	// Partitions are those of each member, by its instance id, as topic/partition in order.
	Partitions map[string][]string
}

// RosterOf returns the roster of a group. ok is false while the group is not stable, or has members that are not static.
func RosterOf(t testing.TB, client *kgo.Client, group string) (r Roster, ok bool) {
	t.Helper()
	groups, err := kadm.NewClient(client).DescribeGroups(t.Context(), group)
	if err != nil || groups[group].State != "Stable" {
		return Roster{}, false
	}
	r.Partitions = map[string][]string{}
	for _, m := range groups[group].Members {
		assigned, isConsumer := m.Assigned.AsConsumer()
		if !isConsumer || m.InstanceID == nil {
			return Roster{}, false
		}
		r.Partitions[*m.InstanceID] = []string{}
		for _, topic := range assigned.Topics {
			for _, partition := range topic.Partitions {
				r.Partitions[*m.InstanceID] = append(r.Partitions[*m.InstanceID], fmt.Sprintf("%s/%02d", topic.Topic, partition))
			}
		}
		slices.Sort(r.Partitions[*m.InstanceID])
		r.Generation = max(r.Generation, generation(t, client, group, m))
	}
	return r, r.Generation > 0
}

// generation asks for what a broker tells members only, with heartbeats in the name of one: those of another generation are
// refused. It returns 0 for a member that is none any more.
func generation(t testing.TB, client *kgo.Client, group string, m kadm.DescribedGroupMember) int32 {
	t.Helper()
	for n := int32(1); n < 1000; n++ {
		beat := kmsg.NewPtrHeartbeatRequest()
		beat.Group, beat.Generation, beat.MemberID, beat.InstanceID = group, n, m.MemberID, m.InstanceID
		answer, err := beat.RequestWith(t.Context(), client)
		if err != nil {
			return 0
		}
		switch err := kerr.ErrorForCode(answer.ErrorCode); {
		case err == nil:
			return n
		case !errors.Is(err, kerr.IllegalGeneration):
			return 0
		}
	}
	t.Fatalf("group %s is of no generation below 1000", group)
	return 0
}
