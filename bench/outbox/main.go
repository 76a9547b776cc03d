// Bench-outbox measures package outbox beside what else moves messages from Postgres to Kafka, and prints a table with the
// aims it meets and misses. What is compared runs in turn, on one machine, in one run.
//
//	make bench-outbox                            all legs, medians of 5 rounds
//	make bench-outbox ARGS=-brief                each leg once and short: shows that it runs, not how fast it is
//	make bench-outbox ARGS="-legs drain,write"   some of them
//
// Legs kafka and latency need Apache Kafka, that is Java 17, and Maven for the first time.
package main

import (
	"context"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// plan is how much a leg does.
type plan struct {
	backlog   int           // messages to drain
	watermill time.Duration // how long the Watermill forwarder is watched
	loadFor   time.Duration // of one round of latencies
	rates     []int         // messages a second
	warmups   int           // rounds of latencies that do not count
	writeFor  time.Duration // of one round, of each kind of write
	ring      int           // rows
	polls     int           // timed in each state of the ring
}

var (
	full  = plan{backlog: 500_000, watermill: 5 * time.Second, loadFor: 10 * time.Second, rates: []int{500, 2000, 5000}, warmups: 3, writeFor: 4 * time.Second, ring: 10_000_000, polls: 2000}
	brief = plan{backlog: 20_000, watermill: time.Second, loadFor: time.Second, rates: []int{500, 2000}, warmups: 1, writeFor: time.Second / 2, ring: 50_000, polls: 100}
)

// bench is what the legs share.
type bench struct {
	legs.Setting
	plan
}

func main() {
	legs.Program[*bench]{
		Name: "bench-outbox",
		Legs: []legs.Leg[*bench]{
			{Name: "drain", Run: (*bench).drain},
			{Name: "kafka", Run: (*bench).kafka},
			{Name: "latency", Run: (*bench).latencies},
			{Name: "write", Run: (*bench).writes},
			{Name: "ring", Run: (*bench).polled},
		},
		New: func(_ context.Context, s legs.Setting) (*bench, func(), error) {
			if s.Brief {
				return &bench{s, brief}, func() {}, nil
			}
			return &bench{s, full}, func() {}, nil
		},
		Postgres: map[string]string{"wal_level": "logical", "max_replication_slots": "10"}, // for Debezium
		Lacking:  []error{localkafka.ErrNoJava, localkafka.ErrNoMaven},
		Commands: map[string]func(context.Context, []string) error{relayCommand: relay},
	}.Main()
}
