package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// A service that is back within its session is the member it was: the group counts no rebalance, and nothing moves.
func TestARestartOfAServiceWithAnInstanceIDIsNoRebalance(t *testing.T) {
	t.Parallel()
	db, broker := migrated.New(t), kafkatest.New(t, event.Topics()...)
	client := broker.Client(t)
	for service, role := range map[string]string{"order": "orders", "email": "email", "warehouse": "warehouse"} {
		start := func() *serving {
			ops := unused(t)
			s := serveInBackground(t, service, "--database-url", db.RoleURL(role), "--kafka", strings.Join(broker.Addrs, ","),
				"--ops-addr", ops, "--dev", "--instance-id", service+"-0")
			wantReady(t, s, "http://"+ops+"/readyz")
			return s
		}
		roster := func() (r kafkatest.Roster) {
			waitUntil(t, service+" is a static member with partitions", func() (ok bool) {
				r, ok = kafkatest.RosterOf(t, client, service)
				return ok && len(r.Partitions) == 1 && len(r.Partitions[service+"-0"]) > 0
			})
			return r
		}
		first := start()
		before := roster()
		if code := first.interrupt(); code != 0 {
			t.Fatalf("%s: exit %d after an interrupt\n%s", service, code, first.out.String())
		}
		start()
		if diff := cmp.Diff(before, roster()); diff != "" {
			t.Errorf("group %s (-before the restart +after):\n%s", service, diff)
		}
	}
}
