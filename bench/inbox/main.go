// Bench-inbox measures package inbox beside what is usually done instead, and prints a table with the aims it meets and misses.
// What is compared runs in turn, on one machine, in one run.
//
//	make bench-inbox                            all legs, medians of 5 rounds
//	make bench-inbox ARGS=-brief                each leg once and short: shows that it runs, not how fast it is
//	make bench-inbox ARGS="-legs batch,poison"  some of them
//
// The broker is kfake in a process of its own, the consumer is in this one.
package main

import (
	"context"
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
)

// plan is how much a leg does and how often.
type plan struct {
	rounds   int           // a leg's figure is the median of this many
	messages int           // of a run that is fast
	few      int           // of a run that is slow by its nature
	pgbench  time.Duration // of one round
	held     int           // keys
	rows     int           // processed before
	day      int           // rows of the day that is reclaimed
}

var (
	full  = plan{rounds: 5, messages: 100_000, few: 10_000, pgbench: 5 * time.Second, held: 100_000, rows: 10_000_000, day: 1_000_000}
	brief = plan{rounds: 1, messages: 10_000, few: 2_000, pgbench: time.Second, held: 2_000, rows: 100_000, day: 20_000}
)

// bench is what the legs share.
type bench struct {
	plan
	server  *pgserver.Server
	brokers []string
	runs    int // so far: each has a consumer group of its own
}

type leg struct {
	name string
	run  func(*bench, context.Context) ([]table.Row, error)
}

func legs() []leg {
	return []leg{
		{"batch", (*bench).batches},
		{"slow", (*bench).slowKey},
		{"held", (*bench).heldKeys},
		{"rows", (*bench).processedRows},
		{"reclaim", (*bench).reclaim},
		{"poison", (*bench).poison},
		{"shared", (*bench).sharedRows},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run, args := measure, os.Args[1:]
	if len(args) > 0 && args[0] == brokerCommand {
		run = broker
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "bench-inbox:", err)
		stop()
		os.Exit(1)
	}
}

func measure(ctx context.Context, args []string) error {
	var names []string
	for _, l := range legs() {
		names = append(names, l.name)
	}
	flags := flag.NewFlagSet("bench-inbox", flag.ExitOnError)
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
	wanted := strings.Split(*chosen, ",")
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no leg %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	var err error
	// A vacuum in the middle of a round would be one round's bad luck.
	if b.server, err = pgserver.Start(ctx, map[string]string{"autovacuum_naptime": "1h"}); err != nil {
		return err
	}
	defer b.server.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended
	stop, err := b.startBroker(ctx)
	if err != nil {
		return err
	}
	defer stop()

	var rows []table.Row
	for _, l := range legs() {
		if !slices.Contains(wanted, l.name) {
			continue
		}
		fmt.Printf("leg %s\n", l.name)
		r, err := l.run(b, ctx)
		if err != nil {
			return fmt.Errorf("leg %s: %w", l.name, err)
		}
		rows = append(rows, r...)
	}
	table.Print(rows)
	return nil
}
