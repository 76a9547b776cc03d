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
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
)

// plan is how much a leg does.
type plan struct {
	messages int           // of a run that is fast
	few      int           // of a run that is slow by its nature
	pgbench  time.Duration // of one round
	held     int           // keys
	rows     int           // processed before
	day      int           // rows of the day that is reclaimed
	steady   time.Duration // of an offered rate
}

var (
	full  = plan{messages: 100_000, few: 10_000, pgbench: 5 * time.Second, held: 100_000, rows: 10_000_000, day: 1_000_000, steady: 10 * time.Second}
	brief = plan{messages: 10_000, few: 2_000, pgbench: time.Second, held: 2_000, rows: 100_000, day: 20_000, steady: 2 * time.Second}
)

// bench is what the legs share.
type bench struct {
	legs.Setting
	plan
	brokers []string
	groups  int // so far: each run has a consumer group of its own
}

func main() {
	legs.Program[*bench]{
		Name: "bench-inbox",
		Legs: []legs.Leg[*bench]{
			{Name: "batch", Run: (*bench).batches},
			{Name: "slow", Run: (*bench).slowKey},
			{Name: "held", Run: (*bench).heldKeys},
			{Name: "rows", Run: (*bench).processedRows},
			{Name: "reclaim", Run: (*bench).reclaim},
			{Name: "poison", Run: (*bench).poison},
			{Name: "steady", Run: (*bench).steadyPoison},
			{Name: "shared", Run: (*bench).sharedRows},
		},
		New: func(ctx context.Context, s legs.Setting) (b *bench, end func(), err error) {
			b = &bench{Setting: s, plan: full}
			if s.Brief {
				b.plan = brief
			}
			end, err = legs.Start(ctx, &b.brokers, brokerCommand)
			return b, end, err
		},
		Commands: map[string]func(context.Context, []string) error{brokerCommand: broker},
	}.Main()
}
