package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/outbox"
)

// relayCommand makes this program a relay: what is measured is a process of its own, as its memory is.
const relayCommand = "relay"

// drained is what a process that moves messages prints when it is done.
type drained struct {
	Messages int
	Seconds  float64 // from its start to the last ack
	RSSMiB   float64 // the most it had resident; 0 where the system does not say
}

func (d drained) perSec() float64 { return float64(d.Messages) / d.Seconds }

// relay publishes messages and ends.
func relay(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(relayCommand, flag.ExitOnError)
	url := flags.String("url", "", "database")
	brokers := flags.String("brokers", "", "Kafka")
	name := flags.String("name", "relay", "a new name publishes everything again")
	messages := flags.Int("messages", 0, "how many to publish")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, *url)
	if err != nil {
		return err
	}
	defer pool.Close()
	client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(strings.Split(*brokers, ",")...))...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	counter := &counter{Publisher: outbox.NewKafkaPublisher(client), left: int64(*messages), done: stop}
	r, err := outbox.NewRelay(pool, counter, outbox.RelayOptions{Schema: schema, Name: *name})
	if err != nil {
		return err
	}
	began := time.Now()
	if err := r.Run(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(drained{
		Messages: *messages, Seconds: time.Unix(0, counter.last.Load()).Sub(began).Seconds(), RSSMiB: peakRSS(),
	})
}

// counter calls done once as many messages as were left are acknowledged.
type counter struct {
	outbox.Publisher
	left int64
	last atomic.Int64 // when the last one was, in Unix nanoseconds
	done func()
}

func (c *counter) Publish(ctx context.Context, page []outbox.Record) []error {
	errs := c.Publisher.Publish(ctx, page)
	for i := range page {
		if errs == nil || errs[i] == nil {
			c.left--
		}
	}
	c.last.Store(time.Now().UnixNano())
	if c.left <= 0 {
		c.done()
	}
	return errs
}

// peakRSS is the most memory that this process has had resident, in MiB, where there is a /proc.
func peakRSS() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseFloat(kib, 64)
	if err != nil {
		return 0
	}
	return n / 1024
}

// runRelay drains the backlog with a relay process, which nobody else of its name must have drained before.
func (b *bench) runRelay(ctx context.Context, url, name string, brokers []string) (drained, error) {
	self, err := os.Executable()
	if err != nil {
		return drained{}, err
	}
	return drain(exec.CommandContext(ctx, self, relayCommand,
		"-url", url, "-name", name, "-brokers", strings.Join(brokers, ","), "-messages", strconv.Itoa(b.backlog)))
}

// drain runs a process that moves messages and returns what it says.
func drain(cmd *exec.Cmd) (drained, error) {
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	var d drained
	if err = errors.Join(err, json.Unmarshal(out.Bytes(), &d)); err != nil {
		return drained{}, fmt.Errorf("%s: %w\n%s", cmd, err, complaints.String())
	}
	return d, nil
}
