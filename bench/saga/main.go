// Bench-saga measures package saga beside pgbench, and with one instance per transaction, and prints a table with the aims it
// meets and misses. What is compared runs in turn, on one machine, in one run.
//
//	make bench-saga                              all legs, medians of 5 rounds
//	make bench-saga ARGS=-brief                  each leg once and short: shows that it runs, not how fast it is
//	make bench-saga ARGS="-legs local,waiting"   some of them
package main

import (
	"context"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
)

// plan is how much a leg does.
type plan struct {
	sagas    int           // of a run that is fast
	few      int           // of a run that is slow by its nature
	orders   int           // of a run of the order service
	pgbench  time.Duration // of one round
	waiting  int           // instances behind blocked heads
	churn    int           // instances that end while the snapshot is held, before anything is measured
	claims   int           // of each state of the waiting
	running  int           // instances of the engine that is killed
	callTime time.Duration // of a call of theirs; the lease is at least twice as long
}

var (
	full = plan{sagas: 30_000, few: 3_000, orders: 6_000, pgbench: 5 * time.Second, waiting: 100_000, churn: 150_000, claims: 500,
		running: 10_000, callTime: 20 * time.Second}
	brief = plan{sagas: 2_000, few: 100, orders: 200, pgbench: time.Second, waiting: 1_000, churn: 1_000, claims: 30,
		running: 300, callTime: 2 * time.Second}
)

// bench is what the legs share.
type bench struct {
	legs.Setting
	plan
}

func main() {
	legs.Program[*bench]{
		Name: "bench-saga",
		Legs: []legs.Leg[*bench]{
			{Name: "local", Run: (*bench).local},
			{Name: "order", Run: (*bench).order},
			{Name: "hot", Run: (*bench).hot},
			{Name: "waiting", Run: (*bench).waitingInstances},
			{Name: "recovery", Run: (*bench).recovery},
		},
		New: func(_ context.Context, s legs.Setting) (*bench, func(), error) {
			if s.Brief {
				return &bench{s, brief}, func() {}, nil
			}
			return &bench{s, full}, func() {}, nil
		},
		Commands: map[string]func(context.Context, []string) error{
			engineCommand: hangingEngine, orderCommand: orderService, sandboxCommand: paymentProvider,
		},
	}.Main()
}
