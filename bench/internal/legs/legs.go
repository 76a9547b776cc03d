// Package legs is what the benchmarks of the libraries have in common: each is a program that runs its legs, or some of them,
// on a Postgres of its own, and prints what they measured in one table.
package legs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/orderflow-dev/orderflow/bench/internal/pgserver"
	"github.com/orderflow-dev/orderflow/bench/internal/table"
)

// Leg is a part of a benchmark, with rows of its own in the table.
type Leg[B any] struct {
	Name string
	Run  func(b B, ctx context.Context) ([]table.Row, error)
}

// Setting is what a run was asked for, and the server that it has for it.
type Setting struct {
	Server *pgserver.Server
	Brief  bool // short
	Rounds int  // a leg's figure is the median of this many
}

// Program is a benchmark. B is what its legs share.
type Program[B any] struct {
	Name string // as make knows it
	Legs []Leg[B]
	// New makes what the legs share; end undoes that.
	New func(ctx context.Context, s Setting) (b B, end func(), err error)
	// Postgres are parameters of the server, beside those that every benchmark has.
	Postgres map[string]string
	// Lacking are the errors of a machine that cannot run a leg: it is left out, and the output says so.
	Lacking []error
	// Commands are what this program is in processes of its own ([Start]), by their first argument.
	Commands map[string]func(ctx context.Context, args []string) error
}

// Main runs what the command line asks for, until it is done or interrupted. It exits with 1 if that fails.
func (p Program[B]) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run, args := p.measure, os.Args[1:]
	if len(args) > 0 && p.Commands[args[0]] != nil {
		run, args = p.Commands[args[0]], args[1:]
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		stop()
		os.Exit(1)
	}
}

func (p Program[B]) measure(ctx context.Context, args []string) error {
	var names []string
	for _, l := range p.Legs {
		names = append(names, l.Name)
	}
	flags := flag.NewFlagSet(p.Name, flag.ExitOnError)
	brief := flags.Bool("brief", false, "run each leg once and short")
	rounds := flags.Int("rounds", 0, "rounds of each leg (default 5, 1 with -brief)")
	chosen := flags.String("legs", strings.Join(names, ","), "legs to run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rounds <= 0 {
		*rounds = 5
		if *brief {
			*rounds = 1
		}
	}
	wanted := strings.Split(*chosen, ",")
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no leg %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	// A vacuum in the middle of a round would be one round's bad luck.
	parameters := map[string]string{"autovacuum_naptime": "1h"}
	maps.Copy(parameters, p.Postgres)
	server, err := pgserver.Start(ctx, parameters)
	if err != nil {
		return err
	}
	defer server.Stop() //nolint:contextcheck // it stops what was started also when ctx has ended
	b, end, err := p.New(ctx, Setting{server, *brief, *rounds})
	if err != nil {
		return err
	}
	defer end()
	return p.run(ctx, b, wanted)
}

func (p Program[B]) run(ctx context.Context, b B, wanted []string) error {
	var (
		rows    []table.Row
		leftOut []string
	)
	for _, l := range p.Legs {
		if !slices.Contains(wanted, l.Name) {
			continue
		}
		fmt.Printf("leg %s\n", l.Name)
		r, err := l.Run(b, ctx)
		if slices.ContainsFunc(p.Lacking, func(lack error) bool { return errors.Is(err, lack) }) {
			leftOut = append(leftOut, fmt.Sprintf("leg %s is left out: %v", l.Name, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("leg %s: %w", l.Name, err)
		}
		rows = append(rows, r...)
	}
	table.Print(rows)
	for _, line := range leftOut {
		fmt.Println(line)
	}
	return nil
}
