// Forwarder drains a backlog from Postgres to Kafka with Watermill's forwarder: its SQL subscriber and its Kafka publisher, as
// its documentation sets them up for an outbox. make bench-outbox runs it beside the relay. It is a module of its own so that
// what it depends on stays out of the project's.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
)

const outbox = "outbox"

// layout is how the rows are stored and read: a hundred at a time by default, a thousand here.
var layout = watermillsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1000}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "forwarder:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	url := flag.String("url", "", "database")
	brokers := flag.String("brokers", "", "Kafka")
	topic := flag.String("topic", "", "where the messages go")
	group := flag.String("group", "bench", "consumer group; a new one begins at the beginning")
	messages := flag.Int("messages", 0, "how many there are")
	limit := flag.Duration("for", 0, "stop after this long")
	prepare := flag.Bool("prepare", false, "make the tables, print how a row is inserted, and end")
	flag.Parse()
	db, err := sql.Open("pgx", *url)
	if err != nil {
		return err
	}
	defer db.Close()
	subscriber, err := watermillsql.NewSubscriber(db, watermillsql.SubscriberConfig{
		ConsumerGroup: *group, SchemaAdapter: layout, OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		PollInterval: 2 * time.Millisecond, InitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	if *prepare {
		if err := subscriber.SubscribeInitialize(outbox); err != nil {
			return err
		}
		return printRow(*topic)
	}
	config := kafka.DefaultSaramaSyncPublisherConfig()
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: strings.Split(*brokers, ","), OverwriteSaramaConfig: config,
		Marshaler: kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) { return m.Metadata.Get("key"), nil }),
	}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	count := &counter{Publisher: publisher, want: int64(*messages), done: cancel}
	f, err := forwarder.NewForwarder(subscriber, count, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: outbox})
	if err != nil {
		return err
	}
	began := time.Now()
	timer := time.AfterFunc(*limit, cancel)
	defer timer.Stop()
	if err := f.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	n := count.n.Load()
	if n == 0 {
		return errors.New("nothing was published")
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"Messages": n, "Seconds": time.Unix(0, count.last.Load()).Sub(began).Seconds(),
	})
}

// counter counts what is acknowledged, and calls done after the last one.
type counter struct {
	message.Publisher
	want    int64
	n, last atomic.Int64
	done    func()
}

func (c *counter) Publish(topic string, msgs ...*message.Message) error {
	if err := c.Publisher.Publish(topic, msgs...); err != nil {
		return err
	}
	c.last.Store(time.Now().UnixNano())
	if c.n.Add(int64(len(msgs))) >= c.want {
		c.done()
	}
	return nil
}

// printRow prints the INSERT of one row as the forwarder's own publisher makes it, open at the end for numbers n from
// generate_series, with %s where the SQL expression of the payload belongs.
func printRow(topic string) error {
	var envelope capture
	m := message.NewMessage("UUID", []byte("PAYLOAD"))
	m.Metadata.Set("key", "KEY")
	if err := forwarder.NewPublisher(&envelope, forwarder.PublisherConfig{ForwarderTopic: outbox}).Publish(topic, m); err != nil {
		return err
	}
	encoded, err := json.Marshal([]byte("PAYLOAD"))
	if err != nil {
		return err
	}
	body := strings.ReplaceAll(string(envelope.payload), "'", "''")
	body = strings.Replace(body, strings.Trim(string(encoded), `"`), `' || translate(encode(convert_to(%[1]s, 'UTF8'), 'base64'), E'\n', '') || '`, 1)
	body = strings.Replace(body, "UUID", `' || gen_random_uuid() || '`, 1)
	body = strings.Replace(body, "KEY", `user-' || n %% 10000 || '`, 1)
	fmt.Printf(`INSERT INTO %s (uuid, payload, metadata, transaction_id) SELECT gen_random_uuid(), ('%s')::json, '{}', pg_current_xact_id() FROM generate_series(`,
		layout.MessagesTable(outbox), body)
	return nil
}

// capture keeps the payload it is given.
type capture struct{ payload []byte }

func (c *capture) Publish(_ string, msgs ...*message.Message) error {
	c.payload = msgs[0].Payload
	return nil
}

func (*capture) Close() error { return nil }
