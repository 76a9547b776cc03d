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

// drain measures how fast a backlog goes to a broker that keeps nothing.
func (b *bench) drain(ctx context.Context) ([]table.Row, error) {
	forwarder := filepath.Join(b.server.Dir, "forwarder")
	build := exec.CommandContext(ctx, "go", "build", "-o", forwarder, ".")
	build.Dir = "bench/watermill"
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the Watermill forwarder: %w\n%s", err, out)
	}
	var rows []table.Row
	var memory []float64
	for _, answers := range []struct {
		when  string
		delay time.Duration
	}{{"at once", 0}, {"after 1 ms", time.Millisecond}} {
		sink, err := newSink(answers.delay)
		if err != nil {
			return nil, err
		}
		defer sink.Close()
		var calm, hostile, worse, theirs, ratios []float64
		for n := range b.rounds {
			var ours [2]drained
			for i, held := range []bool{false, true} {
				if ours[i], err = b.drainRelay(ctx, sink.ListenAddrs(), held); err != nil {
					return nil, err
				}
				memory = append(memory, ours[i].RSSMiB)
			}
			their, err := b.drainWatermill(ctx, forwarder, sink.ListenAddrs())
			if err != nil {
				return nil, err
			}
			calm, hostile, theirs = append(calm, ours[0].perSec()), append(hostile, ours[1].perSec()), append(theirs, their.perSec())
			worse, ratios = append(worse, ours[0].perSec()/ours[1].perSec()), append(ratios, ours[0].perSec()/their.perSec())
			fmt.Printf("drain, broker answers %s, round %d: relay %.0f msg/s, hostile %.0f, watermill %.0f; relay's memory %.0f MiB\n",
				answers.when, n+1, calm[n], hostile[n], theirs[n], ours[0].RSSMiB)
		}
		name := "drain, broker answers " + answers.when
		speed, ratio, hurt := table.Median(calm), table.Median(ratios), table.Median(worse)
		rows = append(rows,
			table.Row{Name: name + ": relay (msg/s)", Value: speed, Format: "%.0f", Aim: "≥ 150000", Met: speed >= 150_000},
			table.Row{Name: name + ": Watermill forwarder (msg/s)", Value: table.Median(theirs), Format: "%.0f"},
			table.Row{Name: name + ": relay ÷ Watermill", Value: ratio, Format: "%.1f", Aim: "≥ 20", Met: ratio >= 20},
			table.Row{Name: name + ": relay, hostile (msg/s)", Value: table.Median(hostile), Format: "%.0f"},
			table.Row{Name: name + ": times worse when hostile", Value: hurt, Format: "%.2f", Aim: "≤ 1.3", Met: hurt <= 1.3},
		)
	}
	most := table.Quantile(memory, 1)
	if most == 0 {
		fmt.Println("the relay's memory is left out: this system has no /proc")
		return rows, nil
	}
	return append(rows, table.Row{Name: "most memory of a relay while draining (MiB resident)", Value: most, Format: "%.0f", Aim: "≤ 80", Met: most <= 80}), nil
}

// drainRelay has a relay process drain a new backlog.
func (b *bench) drainRelay(ctx context.Context, brokers []string, held bool) (d drained, err error) {
	err = b.withOutbox(ctx, "drain", func(url string) error {
		if held {
			release, err := hold(ctx, url)
			if err != nil {
				return err
			}
			defer release()
		}
		if err := fill(ctx, url, b.backlog); err != nil {
			return err
		}
		d, err = b.runRelay(ctx, url, brokers, b.backlog)
		return err
	})
	return d, err
}

// drainWatermill has the forwarder drain a backlog of the same messages in its own tables for a while.
func (b *bench) drainWatermill(ctx context.Context, forwarder string, brokers []string) (drained, error) {
	const database = "watermill"
	url, err := b.server.Create(ctx, database)
	if err != nil {
		return drained{}, err
	}
	common := []string{"-url", url, "-brokers", strings.Join(brokers, ","), "-topic", topic}
	// It makes its tables and prints how one of its rows looks.
	prepare := exec.CommandContext(ctx, forwarder, append(common, "-prepare")...)
	template, err := prepare.Output()
	if err != nil {
		return drained{}, fmt.Errorf("%s: %w", prepare, err)
	}
	if err := inHundreds(ctx, url, b.backlog, fmt.Sprintf(string(template), payload)); err != nil {
		return drained{}, err
	}
	d, err := drain(exec.CommandContext(ctx, forwarder, append(common, "-for", b.watermill.String(), "-messages", strconv.Itoa(b.backlog))...))
	if err != nil {
		return drained{}, err
	}
	return d, b.server.Drop(ctx, database)
}
