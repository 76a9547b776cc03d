package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
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
	config, err := connector(documented, database)
	if err != nil {
		return err
	}
	maps.Copy(config, map[string]string{"max.batch.size": "8192", "max.queue.size": "65536", "poll.interval.ms": "5"})
	return d.worker.Create(ctx, name, config)
}

// documented is where the connector's configuration is written down.
const documented = "docs/debezium.md"

// connector returns the configuration that the documentation recommends, for database.
func connector(file, database string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the connector's configuration (run this from the repository's root): %w", err)
	}
	_, block, _ := strings.Cut(string(text), "```json\n")
	block, _, _ = strings.Cut(block, "```")
	var config map[string]string
	if err := json.Unmarshal([]byte(block), &config); err != nil {
		return nil, fmt.Errorf("read the connector's configuration in %s: %w", file, err)
	}
	at, err := pgx.ParseConfig(database)
	if err != nil {
		return nil, err
	}
	maps.Copy(config, map[string]string{
		"database.hostname": at.Host, "database.port": strconv.Itoa(int(at.Port)), "database.dbname": at.Database,
		"database.user": at.User, "database.password": at.Password,
	})
	return config, nil
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
