//go:build kafka

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/outbox"
)

// Kafka Connect, set up as docs/debezium.md says, publishes the rows that a relay publishes: to the same topics and
// partitions, with the same keys, values and attributes, and each key in the same order. The one difference is where a
// message's own headers are.
func TestDebeziumPublishesWhatARelayDoes(t *testing.T) {
	ctx := t.Context()
	broker := kafkatest.New(t, "orders", "users")
	server, err := pgserver.Start(ctx, map[string]string{"wal_level": "logical"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	worker, err := startDebezium(ctx, filepath.Join(server.Dir, "connect"), broker.Addrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(worker.stop)
	b := &bench{Setting: legs.Setting{Server: server}}
	if err := b.withOutbox(ctx, "shop", func(url string) error {
		if err := worker.prepare(ctx, url); err != nil {
			return err
		}
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		defer pool.Close()
		const messages = 40
		if err := writeKeys(ctx, pool, messages); err != nil {
			return err
		}
		if err := relayAll(ctx, pool, broker.Addrs, messages); err != nil {
			return err
		}
		// What a restore and the retention do is none of the connector's business. The last message comes behind both.
		if err := execute(ctx, url, `UPDATE `+schema+`.outbox SET txid = '3'`, `TRUNCATE `+schema+`.outbox`); err != nil {
			return err
		}
		last := outbox.Message{Topic: "orders", Key: "last", Type: "order.placed.v1"}
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			return outbox.Writer{Schema: schema}.Write(ctx, tx, last)
		}); err != nil {
			return err
		}
		config, err := connector("../../"+documented, url)
		if err != nil {
			return err
		}
		if err := worker.worker.Create(ctx, "outbox", config); err != nil {
			return err
		}
		compare(t, broker.Read(t, 2*messages+1, "orders", "users"), messages)
		return worker.remove(ctx, "outbox", url)
	}); err != nil {
		t.Fatal(err)
	}
}

// writeKeys writes n messages in transactions of two, with five keys.
func writeKeys(ctx context.Context, pool *pgxpool.Pool, n int) error {
	for i := 0; i < n; i += 2 {
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			return outbox.Writer{Schema: schema}.Write(ctx, tx,
				outbox.Message{
					Topic: "orders", Key: fmt.Sprint("user-", i%5), Type: "order.placed.v1", Subject: fmt.Sprint(i),
					Headers: map[string]string{"tenant": "blue"}, Payload: fmt.Appendf(nil, `{"n": %d}`, i),
				},
				outbox.Message{
					Topic: "users", Key: fmt.Sprint("user-", i%5), Type: "user.seen.v1",
					ContentType: "application/octet-stream", Payload: []byte{0, 255, byte(i)},
				})
		}); err != nil {
			return err
		}
	}
	return nil
}

func relayAll(ctx context.Context, pool *pgxpool.Pool, brokers []string, n int) error {
	client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(brokers...))...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	relay, err := outbox.NewRelay(pool, &counter{Publisher: outbox.NewKafkaPublisher(client), left: int64(n), done: stop}, outbox.RelayOptions{Schema: schema})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

// compare judges n records of the relay, which come first in each partition, by what Debezium published behind them, and
// wants one more from Debezium.
func compare(t *testing.T, records []*kgo.Record, n int) {
	relayed, routed, seqs := map[string]published{}, 0, map[string]int{}
	for _, r := range records {
		p := read(t, r)
		ours, again := relayed[p.headers["ce_id"]]
		if !again && p.headers["outbox-headers"] == "" {
			relayed[p.headers["ce_id"]] = p
			continue
		}
		routed++
		seq, err := strconv.Atoi(p.headers["outbox-seq"])
		if on := p.topic + "/" + p.key; err != nil || seq <= seqs[on] {
			t.Errorf("%s: seq %d, %v, behind %d: out of order", on, seq, err, seqs[on])
		} else {
			seqs[on] = seq
		}
		if !again {
			if p.key != "last" {
				t.Errorf("Debezium published %v, the relay did not", p)
			}
			continue
		}
		if diff := cmp.Diff(ours, p.asRelayed(t), cmp.AllowUnexported(published{})); diff != "" {
			t.Errorf("relay and Debezium differ, -relay +Debezium:\n%s", diff)
		}
	}
	if len(relayed) != n || routed != n+1 {
		t.Errorf("%d messages from the relay and %d from Debezium, want %d and %d", len(relayed), routed, n, n+1)
	}
}

// published is what of a record must not depend on who published it.
type published struct {
	topic      string
	partition  int32
	key, value string
	headers    map[string]string
}

func read(t *testing.T, r *kgo.Record) published {
	p := published{r.Topic, r.Partition, string(r.Key), string(r.Value), map[string]string{}}
	for _, h := range r.Headers {
		p.headers[h.Key] = string(h.Value)
	}
	at, err := time.Parse(time.RFC3339Nano, p.headers["ce_time"])
	if err != nil {
		t.Errorf("ce_time: %v", err)
	}
	p.headers["ce_time"] = at.UTC().String() // one of them writes trailing zeros
	return p
}

// asRelayed undoes the differences that docs/debezium.md lists.
func (p published) asRelayed(t *testing.T) published {
	var own map[string]string
	if err := json.Unmarshal([]byte(p.headers["outbox-headers"]), &own); err != nil {
		t.Errorf("outbox-headers: %v", err)
	}
	headers := maps.Clone(p.headers)
	delete(headers, "id")
	delete(headers, "outbox-headers")
	headers["ce_specversion"] += ".0"
	maps.Copy(headers, own)
	p.headers = headers
	return p
}
