package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/orderflow-dev/orderflow/internal/localkafka"
)

// packages are those whose tests use Kafka, but for what is about kfake itself (cmd/orderflow).
func packages() []string {
	return []string{
		"./internal/localkafka", "./internal/kafkatest", "./internal/kafka", "./outbox", "./inbox",
		"./services/order", "./services/email", "./services/warehouse", "./services/relay", "./test/verify", "./test/e2e", "./bench/outbox",
	}
}

// variable and settings repeat what package kafkatest says of itself: only tests may import it.
const variable = "ORDERFLOW_TEST_KAFKA"

func settings() map[string]string { return map[string]string{"group.min.session.timeout.ms": "100"} }

// runTests starts clusters, runs the suites on them and stops them. It fails unless every test passed, none was skipped,
// every package ran some on Apache Kafka, and those that ran on kfake are the ones that docs/kfake.md lists.
func runTests(ctx context.Context, log *slog.Logger, args []string) (err error) {
	flags := flag.NewFlagSet("kafka test", flag.ContinueOnError)
	n := flags.Int("clusters", 3, "clusters for tests to take turns with")
	only := flags.String("run", "", "run only the tests that match, as in go test")
	verbose := flags.Bool("v", false, "print what every test prints")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen := flags.Args()
	if len(chosen) == 0 {
		chosen = packages()
	}
	listed, err := readListed("docs/kfake.md")
	if err != nil {
		return err
	}
	began := time.Now()
	c, err := startClusters(ctx, log, *n, settings())
	if err != nil {
		return err
	}
	fmt.Printf("Apache Kafka %s: %d clusters of one broker ready in %.1f s\n", localkafka.Version(), *n, time.Since(began).Seconds())
	defer func() { err = errors.Join(err, c.stop(ctx)) }()

	results, err := goTest(ctx, c.variable(), *only, *verbose, chosen)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	results.print(time.Since(began))
	if err != nil {
		return err
	}
	return results.judge(listed, *only == "")
}

// goTest runs the packages' tests one package after the other: those that run at once would share the clusters unaware of
// each other.
func goTest(ctx context.Context, kafka, only string, verbose bool, packages []string) (*results, error) {
	args := []string{"test", "-json", "-race", "-count=1", "-p=1", "-timeout=20m", "-tags=kafka"}
	if only != "" {
		args = append(args, "-run="+only)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Env = append(os.Environ(), variable+"="+kafka, "CGO_ENABLED=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	// A process group of its own: a Ctrl-C ends the tests through this process, which then waits for them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = stopLimit
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("run go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run go test: %w", err)
	}
	r, readErr := readResults(out, verbose)
	err = cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what an interrupted go test has left, if anything
	if _, failed := errors.AsType[*exec.ExitError](err); failed && readErr == nil {
		err = errors.New("tests failed")
	}
	return r, errors.Join(err, readErr)
}
