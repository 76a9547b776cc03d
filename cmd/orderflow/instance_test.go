package main

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

func TestAServiceWithAnInstanceIDIsAStaticMember(t *testing.T) {
	t.Parallel()
	db, broker := migrated.New(t), kafkatest.New(t, event.Topics()...)
	admin := kadm.NewClient(broker.Client(t))
	for service, role := range map[string]string{"order": "orders", "email": "email", "warehouse": "warehouse"} {
		serveInBackground(t, service, "--database-url", db.RoleURL(role), "--kafka", strings.Join(broker.Addrs, ","),
			"--ops-addr", unused(t), "--dev", "--instance-id", service+"-0")
		waitUntil(t, service+" is a static member", func() bool {
			groups, err := admin.DescribeGroups(t.Context(), service)
			if err != nil || len(groups[service].Members) != 1 {
				return false
			}
			id := groups[service].Members[0].InstanceID
			return id != nil && *id == service+"-0"
		})
	}
}
