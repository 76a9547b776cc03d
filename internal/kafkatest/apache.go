package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// Variable names the environment variable with the clusters of Apache Kafka that tests may wipe: cluster from cluster
// separated by a space, broker from broker by a comma.
const Variable = "ORDERFLOW_TEST_KAFKA"

// Settings are the broker settings that the tests count on, beside the defaults of package localkafka.
func Settings() map[string]string {
	return map[string]string{"group.min.session.timeout.ms": fmt.Sprint(minSessionTimeout.Milliseconds())}
}

// clusters hands out what [Variable] names. A package variable, because tests share it and have no other place for it.
var clusters pool

type pool struct {
	once sync.Once
	free chan *Broker
}

// turn is how long a test waits for a cluster: longer than any suite has its clusters.
const turn = 5 * time.Minute

// lease returns a cluster that nobody else has, nil when none is named. It waits for one.
func (p *pool) lease(ctx context.Context) (*Broker, error) {
	p.once.Do(func() {
		named := strings.Fields(os.Getenv(Variable))
		p.free = make(chan *Broker, len(named))
		for _, addrs := range named {
			p.free <- &Broker{Addrs: strings.Split(addrs, ","), Apache: true}
		}
	})
	if cap(p.free) == 0 {
		return nil, nil
	}
	select {
	case b := <-p.free:
		return b, nil
	case <-time.After(turn):
		return nil, fmt.Errorf("no cluster of %s was free for %v: does a test that has one wait for parallel subtests?", Variable, turn)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a cluster of %s: %w", Variable, ctx.Err())
	}
}

// Apache returns an Apache Kafka without topics and groups when $ORDERFLOW_TEST_KAFKA names one, and nil otherwise. It is
// for tests whose subject brings a broker of its own in the ordinary case; others call [New].
//
// The test has the cluster until its subtests have ended, too. They must not be parallel: they would wait for a place among
// the tests that run, and those that have one may be waiting for the cluster.
func Apache(t testing.TB) *Broker {
	t.Helper()
	b, err := clusters.lease(t.Context())
	if err != nil {
		t.Fatalf("kafkatest: %v", err)
	}
	if b == nil {
		return nil
	}
	// Registered first, so it runs last: after everything that the test has on the cluster was closed.
	t.Cleanup(func() { clusters.free <- b })
	t.Attr(Attribute, OnKafka)
	b.wipe(t)
	return b
}

// wipe removes every topic and every group. What the last test has left behind may still be a member of a group.
func (b *Broker) wipe(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := b.connect(t)
	defer client.Close()
	admin := kadm.NewClient(client)
	meta, err := admin.BrokerMetadata(ctx)
	if err != nil {
		t.Fatalf("kafkatest: Kafka at %v, of %s: %v", b.Addrs, Variable, err)
	}
	if meta.Cluster != localkafka.ScratchID {
		t.Fatalf("kafkatest: the Kafka at %v, of %s, has the cluster id %q; tests delete all topics and groups, and do so only on clusters with the id %q: run `make test-kafka`, or start one with `make kafka ARGS=-scratch`",
			b.Addrs, Variable, meta.Cluster, localkafka.ScratchID)
	}
	await(ctx, t, "delete the groups of the last test", func() error { return deleteGroups(ctx, client) })
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		t.Fatalf("kafkatest: list topics: %v", err)
	}
	if len(topics) == 0 {
		return
	}
	deleted, err := admin.DeleteTopics(ctx, topics.Names()...)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		t.Fatalf("kafkatest: delete the topics of the last test: %v", err)
	}
	await(ctx, t, "see the topics of the last test go", func() error {
		left, err := admin.ListTopics(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v are there", left.Names())
		}
		return err
	})
}

// deleteGroups has every member leave its group, and deletes the groups.
func deleteGroups(ctx context.Context, client *kgo.Client) error {
	admin := kadm.NewClient(client)
	groups, err := admin.DescribeGroups(ctx)
	if err != nil || len(groups) == 0 {
		return err
	}
	for _, group := range groups {
		if len(group.Members) == 0 {
			continue
		}
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group = group.Group
		for _, m := range group.Members {
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = m.MemberID
			leave.Members = append(leave.Members, member)
		}
		if _, err := leave.RequestWith(ctx, client); err != nil {
			return fmt.Errorf("have the members of group %s leave: %w", group.Group, err)
		}
	}
	deleted, err := admin.DeleteGroups(ctx, groups.Names()...)
	if err != nil {
		return err
	}
	for _, group := range deleted {
		if group.Err != nil && !errors.Is(group.Err, kerr.GroupIDNotFound) {
			return fmt.Errorf("group %s: %w", group.Group, group.Err)
		}
	}
	return nil
}
