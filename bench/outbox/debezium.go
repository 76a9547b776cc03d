package main

import (
	"context"
	"maps"
	"net"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// slot names replication slot and publication.
const slot = "outbox_debezium"

// debezium is a worker of Kafka Connect.
type debezium struct{ worker *localkafka.Connect }

func startDebezium(ctx context.Context, dir string, brokers []string) (*debezium, error) {
	worker, err := localkafka.StartConnect(ctx, localkafka.ConnectOptions{DataDir: dir, Brokers: brokers, Config: map[string]string{
		"producer.linger.ms": "5", "producer.batch.size": "524288", "producer.buffer.memory": "134217728", "producer.compression.type": "lz4",
	}})
	if err != nil {
		return nil, err
	}
	return &debezium{worker}, nil
}

func (d *debezium) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d.worker.Stop(ctx)
}

// prepare makes the slot: what is committed from here on is the connector's to publish.
func (d *debezium) prepare(ctx context.Context, database string) error {
	return execute(ctx, database,
		`CREATE PUBLICATION `+slot+` FOR TABLE `+schema+`.outbox WITH (publish = 'insert', publish_via_partition_root = true)`,
		`SELECT pg_create_logical_replication_slot('`+slot+`', 'pgoutput')`)
}

// create starts the connector of docs/debezium.md, tuned to drain.
func (d *debezium) create(ctx context.Context, name, database string) error {
	config, err := connector(database)
	if err != nil {
		return err
	}
	maps.Copy(config, map[string]string{"max.batch.size": "8192", "max.queue.size": "65536", "poll.interval.ms": "5"})
	return d.worker.Create(ctx, name, config)
}

func connector(database string) (map[string]string, error) {
	u, err := url.Parse(database)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		return nil, err
	}
	password, _ := u.User.Password()
	return map[string]string{
		"connector.class":   "io.debezium.connector.postgresql.PostgresConnector",
		"database.hostname": host, "database.port": port, "database.dbname": u.Path[1:],
		"database.user": u.User.Username(), "database.password": password,
		"topic.prefix": "outbox", "plugin.name": "pgoutput",
		"slot.name": slot, "publication.name": slot, "publication.autocreate.mode": "disabled",
		"table.include.list": schema + ".outbox", "column.exclude.list": schema + ".outbox.txid," + schema + ".outbox.slot",
		"snapshot.mode": "no_data", "tombstones.on.delete": "false",

		"value.converter":                             "io.debezium.converters.BinaryDataConverter",
		"transforms":                                  "outbox,specversion,source",
		"transforms.outbox.type":                      "io.debezium.transforms.outbox.EventRouter",
		"transforms.outbox.route.by.field":            "topic",
		"transforms.outbox.route.topic.replacement":   "${routedByValue}",
		"transforms.outbox.table.field.event.id":      "id",
		"transforms.outbox.table.field.event.key":     "key",
		"transforms.outbox.table.field.event.type":    "type",
		"transforms.outbox.table.field.event.payload": "payload",
		"transforms.outbox.table.fields.additional.placement": "id:header:ce_id,type:header:ce_type,created_at:header:ce_time," +
			"content_type:header:content-type,seq:header:outbox-seq,headers:header:outbox-headers",
		"transforms.specversion.type":   "org.apache.kafka.connect.transforms.InsertHeader",
		"transforms.specversion.header": "ce_specversion", "transforms.specversion.value.literal": "1.0",
		"transforms.source.type":   "org.apache.kafka.connect.transforms.InsertHeader",
		"transforms.source.header": "ce_source", "transforms.source.value.literal": "/" + schema,
	}, nil
}

// remove ends the connector and its slot.
func (d *debezium) remove(ctx context.Context, name, database string) error {
	if err := d.worker.Delete(ctx, name); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for {
		var active bool
		if err := conn.QueryRow(ctx, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&active); err != nil {
			return err
		}
		if !active {
			_, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, slot)
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
