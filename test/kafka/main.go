// Kafka runs Apache Kafka, as Java processes, for people and for the test suites.
//
//	make kafka                  one broker on 127.0.0.1:9092, until Ctrl-C
//	make kafka BROKERS=3        three, on the ports from 9092 on
//	make test-kafka             the suites that use Kafka, on Apache Kafka instead of kfake
//
// Both need Java 17; the first start fetches Kafka with Maven into the user's cache.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// stopLimit is how long brokers have to end. Of several, the last has nobody left to hand its partitions to and waits.
const stopLimit = 20 * time.Second

func main() {
	// The first signal asks everything to stop; a second one has its usual effect.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	err := run(ctx, log, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func run(ctx context.Context, log *slog.Logger, args []string) error {
	if len(args) > 0 && args[0] == "test" {
		return runTests(ctx, log, args[1:])
	}
	flags := flag.NewFlagSet("kafka", flag.ContinueOnError)
	opts := localkafka.Options{Log: log}
	flags.IntVar(&opts.Brokers, "brokers", 1, "number of brokers")
	flags.IntVar(&opts.Port, "port", 9092, "port of the first broker, 0 for free ones")
	flags.StringVar(&opts.DataDir, "data-dir", "", "folder to keep the data in (default: one per number of brokers)")
	scratch := flags.Bool("scratch", false, "let tests wipe it: see ORDERFLOW_TEST_KAFKA in docs/kfake.md")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q; see -help", flags.Arg(0))
	}
	if *scratch {
		opts.ClusterID = localkafka.ScratchID
	}
	if opts.DataDir == "" {
		opts.DataDir = defaultDataDir(opts.Brokers, *scratch)
	}
	return serve(ctx, opts)
}

// defaultDataDir is beside that of `orderflow dev`.
func defaultDataDir(brokers int, scratch bool) string {
	name := "kafka-" + strconv.Itoa(brokers)
	if scratch {
		name += "-scratch"
	}
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/orderflow", name)
	}
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "."
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "orderflow", name)
}

// serve runs a cluster until ctx ends.
func serve(ctx context.Context, opts localkafka.Options) (err error) {
	began := time.Now()
	fmt.Printf("Apache Kafka %s, brokers: %d, data: %s\n", localkafka.Version(), opts.Brokers, opts.DataDir)
	cluster, err := localkafka.Start(ctx, opts)
	if ctx.Err() != nil {
		return nil // asked to stop before it was up
	}
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		began := time.Now()
		if stopErr := cluster.Stop(stopping); stopErr != nil {
			err = errors.Join(err, stopErr)
			return
		}
		fmt.Printf("stopped in %.1f s; the data is kept, remove %s to start empty\n", time.Since(began).Seconds(), opts.DataDir)
	}()
	addrs := strings.Join(cluster.Addrs(), ",")
	fmt.Printf(`ready in %.1f s

  bootstrap  %s
  logs       %s

  bin/orderflow dev --ephemeral --kafka %s     the order system on it
  bin/orderflow groups list --kafka %s

Ctrl-C stops it.
`, time.Since(began).Seconds(), addrs, filepath.Join(opts.DataDir, "*", "kafka.log"), addrs, addrs)
	select {
	case <-ctx.Done():
		return nil
	case <-cluster.Exited():
		return fmt.Errorf("a broker has ended by itself; its log, in %s, says why", opts.DataDir)
	}
}
