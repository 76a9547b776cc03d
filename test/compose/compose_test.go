//go:build compose

package compose

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/orderflow-dev/orderflow/test/system"
)

const patience = 2 * time.Minute

func TestOrdersEndAsTheyShould(t *testing.T) {
	p := up(t)
	t.Run("a paid order is shipped, with both mails", func(t *testing.T) {
		o := p.client.Place(t, system.OrderOf(system.NewUser(), "pm_ok"))
		p.client.AwaitStatus(t, o.ID, patience, "shipped")
		p.client.AwaitOutside(t, o.ID, fmt.Sprintf("charge %d", o.Total.Amount), "mail confirmation", "mail shipped")
	})
	t.Run("a declined card costs nothing", func(t *testing.T) {
		o := p.client.Place(t, system.OrderOf(system.NewUser(), "pm_declined"))
		p.client.AwaitStatus(t, o.ID, patience, "payment_failed")
		p.client.AwaitOutside(t, o.ID, "mail failure")
	})
	t.Run("what is out of stock is rejected", func(t *testing.T) {
		order := system.OrderOf(system.NewUser(), "pm_ok")
		order.Items = []system.Item{{SKU: "sku-sold-out", Quantity: 1}}
		o := p.client.Place(t, order)
		p.client.AwaitStatus(t, o.ID, patience, "rejected")
		p.client.AwaitOutside(t, o.ID, "mail failure")
	})
	t.Run("a container's own command places an order", func(t *testing.T) {
		out := p.compose(t, "exec", "--no-TTY", "api", "orderflow", "orders", "create", "--random", "--wait")
		if !strings.Contains(out, "completed") && !strings.Contains(out, "shipped") {
			t.Errorf("orders create --random --wait printed %s, want an order that is completed", out)
		}
	})
	p.publishedOnce(t)
	t.Run("groups that read everything again do nothing twice", func(t *testing.T) {
		p.rewind(t, "order", "email", "warehouse")
		p.verify(t, nil)
	})
}

// rewind sets groups back to the beginning of their topics.
func (p *project) rewind(t *testing.T, groups ...string) {
	t.Helper()
	p.compose(t, append([]string{"stop"}, groups...)...)
	admin := kadm.NewClient(system.Kafka(t, p.address("KAFKA_PORT")))
	for _, group := range groups {
		offsets, err := admin.FetchOffsets(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		again := 0
		for _, partitions := range offsets {
			for partition, offset := range partitions {
				again += int(offset.At)
				offset.At, offset.LeaderEpoch = 0, -1
				partitions[partition] = offset
			}
		}
		if again == 0 {
			t.Errorf("group %s has read nothing that it could read again", group)
		}
		if err := admin.CommitAllOffsets(t.Context(), group, offsets.Offsets()); err != nil {
			t.Fatal(err)
		}
	}
	p.compose(t, "up", "--detach", "--no-recreate", "--wait")
}

// publishedOnce checks that the topics hold one record for each message of the outboxes: of two relays, one leads.
func (p *project) publishedOnce(t *testing.T) {
	t.Helper()
	db, kafka := p.db(t), kadm.NewClient(system.Kafka(t, p.address("KAFKA_PORT")))
	count := func() (n int64, err error) {
		err = db.QueryRow(t.Context(),
			`SELECT (SELECT count(*) FROM orders.outbox) + (SELECT count(*) FROM warehouse.outbox)`).Scan(&n)
		return n, err
	}
	var written, records int64
	system.Eventually(t, patience, "all messages are published", func() error {
		before, err := count()
		if err != nil {
			return err
		}
		ends, err := kafka.ListEndOffsets(t.Context(), "orders", "orders.completed", "orders.failed", "shipments", "payments")
		if err != nil {
			return err
		}
		records = 0
		ends.Each(func(o kadm.ListedOffset) { records += o.Offset })
		if written, err = count(); err != nil {
			return err
		}
		if before != written || records < written { // an order may still be on its way
			return fmt.Errorf("%d records for %d messages, which were %d before", records, written, before)
		}
		return nil
	})
	if records > written {
		t.Errorf("%d records for %d messages, want one each: nobody died", records, written)
	}
}

// Each part is killed while orders arrive, the api and the databases included.
func TestKillingEachPartInTurnLosesNothing(t *testing.T) {
	p := up(t)
	l := p.place(t, 300, 6, 40)
	for _, service := range []string{"api", "relay", "order", "email", "warehouse", "sandbox", "mailpit", "kafka", "postgres", "redis"} {
		p.kill(t, service)
	}
	p.holds(t, l)
}

func TestConsumersComeAndGoUnderLoad(t *testing.T) {
	p := up(t)
	l := p.place(t, 200, 10, 20)
	p.compose(t, "up", "--detach", "--no-recreate", "--wait", "--scale", "order=3", "--scale", "email=2")
	if got := len(p.containers(t, "order")); got != 3 {
		t.Errorf("%d order containers, want 3", got)
	}
	p.compose(t, "up", "--detach", "--no-recreate", "--wait", "--scale", "order=1", "--scale", "email=1")
	p.holds(t, l)
}

// The leading relay sleeps past its lease and wakes up beside the one that took over.
func TestARelayThatSleepsPastItsLeaseDoesNoHarm(t *testing.T) {
	p := up(t)
	l := p.place(t, 200, 10, 20)
	for _, id := range p.containers(t, "relay") { // one of the two leads
		p.docker(t, "pause", id)
		time.Sleep(6 * time.Second) //nolint:forbidigo // the lease is 4 s
		p.docker(t, "unpause", id)
	}
	p.holds(t, l)
}

// A consumer that reaches Postgres but not Kafka loses its partitions, and joins again when the network is back.
func TestAConsumerCutOffFromKafkaGoesOn(t *testing.T) {
	p := up(t)
	l := p.place(t, 200, 10, 20)
	consumer, network := p.containers(t, "order")[0], p.name+"_kafka"
	p.docker(t, "network", "disconnect", network, consumer)
	time.Sleep(8 * time.Second) //nolint:forbidigo // as long as the cut lasts
	p.docker(t, "network", "connect", network, consumer)
	p.holds(t, l)
}

// Three brokers, with three copies of everything: the loss of one is not noticed, the loss of two is waited for.
func TestAClusterOutlivesTheLossOfBrokers(t *testing.T) {
	p := up(t, "--env-file", clusterEnv)
	l := p.place(t, 300, 6, 40)
	first, second := p.containers(t, "kafka"), p.containers(t, "kafka-2")
	p.docker(t, "kill", first[0])
	time.Sleep(5 * time.Second) //nolint:forbidigo // others lead meanwhile
	p.docker(t, "kill", second[0])
	time.Sleep(5 * time.Second) //nolint:forbidigo // nothing can be published meanwhile
	p.docker(t, "start", first[0], second[0])
	p.holds(t, l)
}

// Every service is replaced, one after the other, while orders arrive: a request that is not accepted is told to come back.
func TestARollingRestartLosesNothing(t *testing.T) {
	p := up(t)
	l := p.place(t, 200, 10, 20)
	for _, service := range []string{"order", "email", "warehouse", "relay", "sandbox", "api"} {
		p.compose(t, "restart", service)
	}
	p.holds(t, l)
}
