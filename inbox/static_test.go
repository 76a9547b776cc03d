package inbox_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
)

func TestARestartOfAStaticMemberMovesNoPartition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var logs [2]lines
	options := func(i int) inbox.Options {
		opts := w.options()
		opts.InstanceID = fmt.Sprintf("pod-%d", i)
		opts.Log = slog.New(slog.NewTextHandler(&logs[i], nil))
		return opts
	}
	stop := w.start(apply, options(0))
	w.start(apply, options(1))
	var before kafkatest.Roster
	w.wait("both have half", func() bool {
		before, _ = kafkatest.RosterOf(t, w.client, "test")
		return len(before.Partitions["pod-0"]) == 6 && len(before.Partitions["pod-1"]) == 6
	})
	moves := func() int {
		return logs[1].containing("partitions assigned") + logs[1].containing("partitions revoked")
	}
	moved := moves()

	stop()
	var records []*kgo.Record
	for i := range 48 {
		records = append(records, record(fmt.Sprintf("u%d", i), 1, ""))
	}
	w.produce(records...) // for both
	w.start(apply, options(0))
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 48 && w.lag() == 0 })
	var after kafkatest.Roster
	w.wait("nothing is being shared out", func() (ok bool) {
		after, ok = kafkatest.RosterOf(t, w.client, "test")
		return ok
	})
	if !w.broker.Apache {
		after.Generation = before.Generation // kfake counts a rebalance: to it, who has no partitions yet is not who had some
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("partitions of the members: (-before the restart +after)\n%s", diff)
	}
	if n := moves(); n != moved {
		t.Errorf("the member that went on was assigned or revoked partitions %d times, want 0", n-moved)
	}
}

// A static member that only goes silent stays in the group until its session ends, and stops whoever waits for an empty group.
// The session of this one outlasts every wait of the tests.
func TestAPausedStaticMemberLeavesItsGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opts := w.pausable()
	opts.InstanceID = "pod-0"
	opts.Kafka = append(opts.Kafka, kgo.SessionTimeout(5*time.Minute))
	w.start(apply, opts)
	w.produce(record("ada", 1, ""))
	w.wait("the first is applied and committed", func() bool { return len(w.effects("ada")) == 1 && w.lag() == 0 })

	p := w.pause(5 * time.Minute)
	w.wait("the group is empty", func() bool { return w.groupState() == "Empty" })
	w.produce(record("ada", 2, ""))
	w.resume(p)
	w.wait("it is back under its name", func() bool {
		r, _ := kafkatest.RosterOf(t, w.client, "test")
		return len(w.effects("ada")) == 2 && len(r.Partitions["pod-0"]) == 12
	})
}

func TestTheGroupIsCooperativeByDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.options())
	var protocol string
	w.wait("a member", func() bool {
		groups, err := w.adm.DescribeGroups(t.Context(), "test")
		protocol = groups["test"].Protocol
		return err == nil && groups["test"].State == "Stable"
	})
	if want := (kgo.CooperativeStickyBalancer()).ProtocolName(); protocol != want {
		t.Errorf("the group shares out its partitions by %q, want %q", protocol, want)
	}
}
