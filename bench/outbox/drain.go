package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
)

// answers says when a broker acknowledges.
type answers struct {
	when  string
	delay time.Duration
}

// drain measures how fast a backlog goes to a broker that keeps nothing. All drain the same
// rows: a relay of a new name, and a forwarder of a new consumer group, each begin at the beginning.
func (b *bench) drain(ctx context.Context) (rows []table.Row, err error) {
	program, err := b.buildForwarder(ctx)
	if err != nil {
		return nil, err
	}
	var memory []float64
	err = b.withBacklog(ctx, "drain", func(url string) error {
		return b.withForwarder(ctx, program, func(theirs *forwarder) error {
			for _, a := range []answers{{"at once", 0}, {"after 1 ms", time.Millisecond}} {
				legs, err := b.drainTo(ctx, a, url, theirs, &memory)
				if err != nil {
					return err
				}
				rows = append(rows, legs...)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	most := table.Quantile(memory, 1)
	if most == 0 {
		fmt.Println("the relay's memory is left out: this system has no /proc")
		return rows, nil
	}
	return append(rows, table.Row{Name: "most memory of a relay while draining (MiB resident)", Value: most, Format: "%.0f", Aim: "≤ 80", Met: most <= 80}), nil
}

func (b *bench) drainTo(ctx context.Context, a answers, url string, theirs *forwarder, memory *[]float64) ([]table.Row, error) {
	sink, err := newSink(a.delay)
	if err != nil {
		return nil, err
	}
	defer sink.Close()
	brokers := sink.ListenAddrs()
	name := "drain, broker answers " + a.when
	var speeds, hostile, worse, watermill, ratios []float64
	for n := range b.Rounds {
		ours, err := b.runRelay(ctx, url, fmt.Sprintf("%s %d", a.when, n), brokers)
		if err != nil {
			return nil, err
		}
		held, err := b.drainHeld(ctx, url, fmt.Sprintf("hostile, %s %d", a.when, n), brokers)
		if err != nil {
			return nil, err
		}
		their, err := theirs.drain(ctx, fmt.Sprintf("%s %d", a.when, n), brokers)
		if err != nil {
			return nil, err
		}
		*memory = append(*memory, ours.RSSMiB, held.RSSMiB)
		speeds, hostile, watermill = append(speeds, ours.perSec()), append(hostile, held.perSec()), append(watermill, their.perSec())
		worse, ratios = append(worse, ours.perSec()/held.perSec()), append(ratios, ours.perSec()/their.perSec())
		fmt.Printf("%s, round %d: relay %.0f msg/s with %.0f MiB, hostile %.0f with %.0f, watermill %.0f\n",
			name, n+1, speeds[n], ours.RSSMiB, hostile[n], held.RSSMiB, watermill[n])
	}
	speed, ratio, hurt := table.Median(speeds), table.Median(ratios), table.Median(worse)
	return []table.Row{
		{Name: name + ": relay (msg/s)", Value: speed, Format: "%.0f", Aim: "≥ 150000", Met: speed >= 150_000},
		{Name: name + ": Watermill forwarder (msg/s)", Value: table.Median(watermill), Format: "%.0f"},
		{Name: name + ": relay ÷ Watermill", Value: ratio, Format: "%.1f", Aim: "≥ 20", Met: ratio >= 20},
		{Name: name + ": relay, hostile (msg/s)", Value: table.Median(hostile), Format: "%.0f"},
		{Name: name + ": times worse when hostile", Value: hurt, Format: "%.2f", Aim: "≤ 1.3", Met: hurt <= 1.3},
	}, nil
}

// drainHeld has a relay drain the backlog at url while transactions are held open.
func (b *bench) drainHeld(ctx context.Context, url, name string, brokers []string) (drained, error) {
	release, err := hold(ctx, url)
	if err != nil {
		return drained{}, err
	}
	defer release()
	return b.runRelay(ctx, url, name, brokers)
}

// forwarder is the Watermill forwarder with a backlog of the same messages in its own tables.
type forwarder struct {
	program, url string
	limit        time.Duration
	messages     int
}

func (b *bench) buildForwarder(ctx context.Context) (string, error) {
	program := filepath.Join(b.Server.Dir, "forwarder")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, ".")
	build.Dir = "bench/watermill"
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the Watermill forwarder: %w\n%s", err, out)
	}
	return program, nil
}

func (b *bench) withForwarder(ctx context.Context, program string, use func(*forwarder) error) error {
	const database = "watermill"
	url, err := b.Server.Create(ctx, database)
	if err != nil {
		return err
	}
	// It makes its tables and prints how one of its rows looks.
	prepare := exec.CommandContext(ctx, program, "-url", url, "-topic", topic, "-prepare")
	template, err := prepare.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", prepare, err)
	}
	if err := inHundreds(ctx, url, b.backlog, fmt.Sprintf(string(template), payload)); err != nil {
		return err
	}
	if err := use(&forwarder{program, url, b.watermill, b.backlog}); err != nil {
		return err
	}
	return b.Server.Drop(ctx, database)
}

// drain publishes from the beginning of the backlog for a while.
func (f *forwarder) drain(ctx context.Context, group string, brokers []string) (drained, error) {
	return drain(exec.CommandContext(ctx, f.program, "-url", f.url, "-group", group, "-brokers", strings.Join(brokers, ","),
		"-for", f.limit.String(), "-messages", strconv.Itoa(f.messages)))
}
