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
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// plan is how much a leg does and how often.
type plan struct {
	rounds    int           // a leg's figure is the median of this many
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
	full  = plan{rounds: 5, backlog: 500_000, watermill: 5 * time.Second, loadFor: 10 * time.Second, rates: []int{500, 2000, 5000}, warmups: 3, writeFor: 4 * time.Second, ring: 10_000_000, polls: 2000}
	brief = plan{rounds: 1, backlog: 20_000, watermill: time.Second, loadFor: time.Second, rates: []int{500, 2000}, warmups: 1, writeFor: time.Second / 2, ring: 50_000, polls: 100}
)

// bench is what the legs share.
type bench struct {
	plan
	server *pgserver.Server
}

type leg struct {
	name string
	run  func(*bench, context.Context) ([]table.Row, error)
}

func legs() []leg {
	return []leg{
		{"drain", (*bench).drain},
		{"kafka", (*bench).kafka},
		{"latency", (*bench).latencies},
		{"write", (*bench).writes},
		{"ring", (*bench).polled},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run, args := measure, os.Args[1:]
	if len(args) > 0 && args[0] == relayCommand {
		run, args = relay, args[1:]
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "bench-outbox:", err)
		stop()
		os.Exit(1)
	}
}

func measure(ctx context.Context, args []string) error {
	var names []string
	for _, l := range legs() {
		names = append(names, l.name)
	}
	flags := flag.NewFlagSet("bench-outbox", flag.ExitOnError)
	short := flags.Bool("brief", false, "run each leg once and short")
	rounds := flags.Int("rounds", 0, "rounds of each leg (default 5, 1 with -brief)")
	chosen := flags.String("legs", strings.Join(names, ","), "legs to run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b := &bench{plan: full}
	if *short {
		b.plan = brief
	}
	if *rounds > 0 {
		b.rounds = *rounds
	}
	for name := range strings.SplitSeq(*chosen, ",") {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no leg %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	var err error
	if b.server, err = pgserver.Start(ctx, map[string]string{
		"wal_level": "logical", "max_replication_slots": "10", // for Debezium
		"autovacuum_naptime": "1h", // a vacuum in the middle of a round would be one round's bad luck
	}); err != nil {
		return err
	}
	defer b.server.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended

	var (
		rows    []table.Row
		leftOut []string
	)
	for _, l := range legs() {
		if !slices.Contains(strings.Split(*chosen, ","), l.name) {
			continue
		}
		fmt.Printf("leg %s\n", l.name)
		r, err := l.run(b, ctx)
		if errors.Is(err, localkafka.ErrNoJava) || errors.Is(err, localkafka.ErrNoMaven) {
			leftOut = append(leftOut, fmt.Sprintf("leg %s is left out: %v", l.name, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("leg %s: %w", l.name, err)
		}
		rows = append(rows, r...)
	}
	table.Print(rows)
	for _, line := range leftOut {
		fmt.Println(line)
	}
	return nil
}
