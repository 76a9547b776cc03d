package inbox_test

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// assigned returns the partitions of each static member of the group, nil while they are being shared out.
func (w *world) assigned() map[string][]int32 {
	w.Helper()
	groups, err := w.adm.DescribeGroups(w.Context(), "test")
	if err != nil || groups["test"].State != "Stable" {
		return nil
	}
	parts := map[string][]int32{}
	for _, m := range groups["test"].Members {
		a, ok := m.Assigned.AsConsumer()
		if !ok || m.InstanceID == nil {
			return nil
		}
		for _, t := range a.Topics {
			parts[*m.InstanceID] = append(parts[*m.InstanceID], t.Partitions...)
		}
		slices.Sort(parts[*m.InstanceID])
	}
	return parts
}

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
	w.wait("both have half", func() bool {
		parts := w.assigned()
		return len(parts["pod-0"]) == 6 && len(parts["pod-1"]) == 6
	})
	before := w.assigned()
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
	if diff := cmp.Diff(before, w.assigned()); diff != "" {
		t.Errorf("partitions of the members: (-before the restart +after)\n%s", diff)
	}
	if n := moves(); n != moved {
		t.Errorf("the member that went on was assigned or revoked partitions %d times, want 0", n-moved)
	}
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
