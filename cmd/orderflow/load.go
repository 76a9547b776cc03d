package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/cmd/orderflow/load"
)

func newLoad() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Place orders at a fixed rate",
		Long: `Places orders at a fixed rate, whether or not earlier ones have been answered, and prints what became of them. A latency
counts from the moment an order was due.

An order whose outcome is unknown is sent again under the same idempotency key for --retry-for, so the api may be killed
and restarted meanwhile. --journal keeps every request and answer as a line of JSON, each on disk before the next step.

Ctrl-C ends the arrivals, waits a moment for what is under way, and prints the summary (exit code 130). The exit code is 6
when the outcome of an order stayed unknown or an order was refused.`,
		Example: `  orderflow load --rate 50 --duration 20s
  orderflow load --rate 50 --orders 1000 --declines 0.05 --lost-answers 0.02 --journal load.jsonl
  orderflow load --rate 500 --duration 1m --users 10000 -o json`,
		Args: cobra.NoArgs,
		RunE: runLoad,
	}
	f := cmd.Flags()
	f.Float64("rate", 20, "orders per second")
	f.Duration("duration", 10*time.Second, "how long orders arrive")
	f.Int("orders", 0, "end after this many orders, however long that takes (default: --duration decides)")
	f.Int("users", 100, "number of users who order")
	f.String("journal", "", "file to append every request and answer to")
	f.Float64("declines", 0, "share of orders whose payment is declined (0 to 1)")
	f.Float64("lost-answers", 0, "share of orders that are charged while the provider's answer is lost")
	f.Float64("timeouts", 0, "share of orders whose payment is never answered and never charged")
	f.Float64("slow", 0, "share of orders with a slow payment")
	f.Float64("errors", 0, "share of orders whose first payment attempt fails with a 500")
	f.Uint64("seed", 0, "same seed, same orders (default: a random one)")
	f.Duration("retry-for", time.Minute, "how long an order with an unknown outcome is sent again")
	addAPIFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

func runLoad(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	client, err := newClient(cmd, 512)
	if err != nil {
		return err
	}
	defer client.Close()
	products, err := client.Products(cmd.Context())
	if err != nil {
		return err
	}
	opts, generator, err := loadFromFlags(cmd, products)
	if err != nil {
		return err
	}
	if path := stringFlag(cmd, "journal"); path != "" {
		if opts.Journal, err = load.OpenJournal(path); err != nil {
			return err
		}
		defer opts.Journal.Close()
	}
	if isTerminal(cmd.ErrOrStderr()) {
		opts.Progress = func(p load.Progress) { drawProgress(cmd.ErrOrStderr(), opts, p) }
	}
	summary, err := load.Run(cmd.Context(), client, generator.Next, opts)
	if opts.Progress != nil {
		fmt.Fprintln(cmd.ErrOrStderr())
	}
	if err != nil {
		return err
	}
	if err := printSummary(out, summary); err != nil {
		return err
	}
	switch {
	case cmd.Context().Err() != nil:
		return fail(exitInterrupted, "", "interrupted after %d orders", summary.Orders)
	case summary.Unknown > 0:
		hint := "run it with --journal FILE to have their keys, by which they can be found"
		if opts.Journal != nil {
			hint = "the journal has their keys: the same request with its key finds out"
		}
		return fail(exitPartial, hint, "the outcome of %d orders stayed unknown", summary.Unknown)
	case summary.Refused > 0:
		return fail(exitPartial, "", "%d orders were refused", summary.Refused)
	}
	return nil
}

func loadFromFlags(cmd *cobra.Command, products []apiclient.Product) (load.Options, *load.Generator, error) {
	f := cmd.Flags()
	number := func(name string) float64 { v, _ := f.GetFloat64(name); return v }
	length := func(name string) time.Duration { v, _ := f.GetDuration(name); return v }
	users, _ := f.GetInt("users")
	orders, _ := f.GetInt("orders")
	seed, _ := f.GetUint64("seed")
	if seed == 0 {
		seed = rand.Uint64() //nolint:gosec // no secret
	}
	opts := load.Options{Rate: number("rate"), Duration: length("duration"), Orders: orders, RetryFor: length("retry-for")}
	if orders > 0 && !f.Changed("duration") {
		opts.Duration = 0
	}
	if opts.Rate <= 0 || orders < 0 || opts.RetryFor <= 0 || (orders == 0 && opts.Duration <= 0) {
		return opts, nil, usage("", "--rate, --duration and --retry-for must be positive, --orders must not be negative")
	}
	generator, err := load.NewGenerator(seed, users, products, load.Mix{
		Declines: number("declines"), LostAnswers: number("lost-answers"), Timeouts: number("timeouts"),
		Slow: number("slow"), Errors: number("errors"),
	})
	if err != nil {
		return opts, nil, usage("", "%w", err)
	}
	return opts, generator, nil
}

// drawProgress redraws one line.
func drawProgress(w io.Writer, opts load.Options, p load.Progress) {
	done := 1.0
	switch {
	case opts.Orders > 0:
		done = float64(p.Sent) / float64(opts.Orders)
	case opts.Duration > 0:
		done = p.Elapsed.Seconds() / opts.Duration.Seconds()
	}
	const width = 30
	filled := int(min(1, done) * width)
	fmt.Fprintf(w, "\r[%s%s] %3.0f%%  sent %d  accepted %d  refused %d  unknown %d  under way %d \x1b[K",
		strings.Repeat("█", filled), strings.Repeat("░", width-filled), min(1, done)*100, p.Sent, p.Accepted, p.Refused, p.Unknown, p.InFlight)
}

func printSummary(out *output, s load.Summary) error {
	t := &table{}
	row := func(name, format string, args ...any) { t.add(cell{name, "dim"}, fmt.Sprintf(format, args...)) }
	row("orders", "%d in %.1f s", s.Orders, s.Seconds)
	row("accepted", "%d (%.1f/s)", s.Accepted, s.PerSecond)
	row("refused", "%d", s.Refused)
	row("unknown", "%d", s.Unknown)
	row("retried", "%d attempts, %d answered from an earlier one", s.Retried, s.Replayed)
	if s.HeldBack > 0 {
		row("held back", "%d orders were sent late: too many were under way", s.HeldBack)
	}
	row("latency", "p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms", s.Latency.P50, s.Latency.P90, s.Latency.P99, s.Latency.Max)
	var answers []string
	for status, n := range s.Answers {
		answers = append(answers, fmt.Sprintf("%s %d", status, n))
	}
	slices.Sort(answers)
	row("answers", "%s", strings.Join(answers, ", "))
	return one(out, s, t)
}
