// Bench measures the order system beside pgbench on the same Postgres in one run, and prints ratios: on a shared machine
// the absolute figures say little, and a ratio from two runs says less.
//
//	make bench               all legs, medians of 5 rounds
//	make bench ARGS=-brief   each leg once and short: shows that it runs, not how fast it is
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
)

// plan is how long and how often a leg runs.
type plan struct {
	binary   string        // orderflow
	rounds   int           // a leg's figure is the median of this many
	leg      time.Duration // of one round
	clients  int           // concurrent clients of pgbench and of the api
	latency  time.Duration // of the latency leg
	perSec   int           // messages a second in the latency leg
	walkFor  time.Duration // how long orders are placed in the walk leg
	drainFor time.Duration // how long the walk may take to finish what was placed
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	p := plan{rounds: 5, leg: 6 * time.Second, clients: 16, latency: 15 * time.Second, perSec: 500,
		walkFor: 10 * time.Second, drainFor: 3 * time.Minute}
	brief := flag.Bool("brief", false, "run each leg once and short")
	flag.StringVar(&p.binary, "orderflow", "bin/orderflow", "the binary to measure")
	flag.Parse()
	if *brief {
		p.rounds, p.leg, p.latency, p.walkFor = 1, 2*time.Second, 3*time.Second, 2*time.Second
	}

	server, err := startPostgres(ctx)
	if err != nil {
		return err
	}
	defer server.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended

	var results []table.Row
	for _, leg := range []func(context.Context, plan, *postgres) ([]table.Row, error){acceptLeg, walkLeg, latencyLeg} {
		r, err := leg(ctx, p, server)
		if err != nil {
			return err
		}
		results = append(results, r...)
	}
	table.Print(results)
	return nil
}
