package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/orderflow-dev/orderflow/internal/filelock"
	"github.com/orderflow-dev/orderflow/internal/localkafka"
	"github.com/orderflow-dev/orderflow/internal/localpg"
)

const folderPrefix = "orderflow-kafka-test-"

// clusters are the clusters of one broker each that tests take turns with, in a folder that goes with them.
type clusters struct {
	dir     string
	lock    *os.File // tells the folder of a run from the leftover of one that was killed
	running []*localkafka.Cluster
}

func startClusters(ctx context.Context, log *slog.Logger, n int, config map[string]string) (*clusters, error) {
	sweep()
	// Once, before several starts would each do it.
	if err := localkafka.Fetch(ctx, log); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(localpg.Scratch(), folderPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a folder for the brokers: %w", err)
	}
	c := &clusters{dir: dir, running: make([]*localkafka.Cluster, n)}
	if c.lock, err = os.Create(filepath.Join(dir, "lock")); err == nil {
		err = filelock.TryLock(c.lock)
	}
	if err != nil {
		return nil, errors.Join(err, c.stop(ctx))
	}
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			c.running[i], errs[i] = localkafka.Start(ctx, localkafka.Options{
				DataDir: filepath.Join(dir, strconv.Itoa(i+1)), ClusterID: localkafka.ScratchID, Config: config, HeapMB: 384, Log: log,
			})
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, c.stop(ctx))
	}
	return c, nil
}

// variable is the value of ORDERFLOW_TEST_KAFKA that names the clusters.
func (c *clusters) variable() string {
	var named []string
	for _, cluster := range c.running {
		named = append(named, strings.Join(cluster.Addrs(), ","))
	}
	return strings.Join(named, " ")
}

// stop ends the clusters, also those of a start that failed half-way, and removes their folder. ctx may have ended.
func (c *clusters) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	errs := make([]error, len(c.running))
	var all sync.WaitGroup
	for i, cluster := range c.running {
		if cluster != nil {
			all.Go(func() { errs[i] = cluster.Stop(ctx) })
		}
	}
	all.Wait()
	errs = append(errs, os.RemoveAll(c.dir))
	if c.lock != nil {
		errs = append(errs, filelock.Close(c.lock))
	}
	return errors.Join(errs...)
}

// sweep removes the folders of runs that were killed before they could.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(localpg.Scratch(), folderPrefix+"*")) // the only error is a malformed pattern
	for _, dir := range dirs {
		if abandoned(dir) {
			_ = os.RemoveAll(dir) // a leftover that cannot be removed is no reason to fail
		}
	}
}

func abandoned(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil || time.Since(info.ModTime()) < time.Minute {
		return false // perhaps its owner is about to take the lock
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer func() { _ = filelock.Close(lock) }()
	return filelock.TryLock(lock) == nil
}
