package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

// Run starts the system, says on Options.Out where it listens, keeps it going until ctx ends, and stops it in the reverse
// order of its start. It returns nil after an orderly end, [InUse] when another process has the folder, and otherwise the
// reason why a part could not start or ended by itself.
func Run(ctx context.Context, opts Options) (err error) {
	opts, cleanup, err := opts.withDefaults()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleanup()) }()
	lock, err := lockDataDir(opts.DataDir)
	if err != nil {
		return err
	}
	defer func() { _ = filelock.Close(lock) }()

	if err := removeStale(opts); err != nil {
		return err
	}
	log, logFile, err := openLog(opts)
	if err != nil {
		return err
	}
	defer logFile.Close()

	s := newSystem(opts, log)
	s.report.line("orderflow dev, data in %s", opts.DataDir)
	defer func() { err = errors.Join(err, s.stop(context.WithoutCancel(ctx))) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.announce(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		s.report.line("\nstopping …")
		return nil
	case err := <-s.failed:
		return err
	}
}

func (o Options) withDefaults() (_ Options, cleanup func() error, err error) {
	cleanup = func() error { return nil }
	if o.Command == "" {
		o.Command = "orderflow"
	}
	if o.Err == nil {
		o.Err = io.Discard
	}
	if o.Seed == 0 {
		o.Seed = 25
	}
	if o.Ephemeral {
		if o.DataDir, err = os.MkdirTemp("", "orderflow-dev-"); err != nil {
			return o, cleanup, fmt.Errorf("make a temporary data folder: %w", err)
		}
		dir := o.DataDir
		cleanup = func() error { return os.RemoveAll(dir) }
		// Under root, Postgres runs as another user, who has to get in. What is secret has a mode of its own.
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // a folder, which Postgres' own user enters
			return o, cleanup, errors.Join(fmt.Errorf("open the temporary data folder: %w", err), cleanup())
		}
		return o, cleanup, nil
	}
	if o.DataDir == "" {
		o.DataDir = DefaultDataDir()
	}
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return o, cleanup, fmt.Errorf("find the data folder: %w", err)
	}
	return o, cleanup, nil
}

// system is everything that runs, and how to stop it.
type system struct {
	opts   Options
	report *report
	log    *slog.Logger
	web    *http.Client
	failed chan error // a part that ended by itself

	mu      sync.Mutex
	ready   Ready
	written []string // ready files to remove
	parts   []part
}

// part is something that runs. Parts with a lower layer were there first and stop last.
type part struct {
	name  string
	layer int
	stop  func(context.Context) error
}

// Layers, from the ground up.
const (
	layerServer  = iota // Postgres, Kafka, Redis
	layerOutside        // the sandbox
	layerRelay
	layerConsumer // order, email, warehouse
	layerAPI
)

func newSystem(opts Options, log *slog.Logger) *system {
	return &system{
		opts: opts, report: newReport(opts.Out), log: log, failed: make(chan error, 16),
		ready: Ready{Ops: map[string]string{}},
		web:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, // nothing stays open behind a probe
	}
}

func (s *system) logOf(service string) *slog.Logger { return s.log.With("service", service) }

func (s *system) add(name string, layer int, stop func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = append(s.parts, part{name: name, layer: layer, stop: stop})
}

// run runs a part with a context of its own, which outlives ctx: the user's Ctrl-C must not end everything at once.
func (s *system) run(ctx context.Context, name string, layer int, f func(context.Context) error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := f(own)
		switch {
		case own.Err() != nil && err != nil:
			s.log.WarnContext(ctx, "part ended with an error", "part", name, "error", err)
		case own.Err() == nil && err != nil:
			s.failed <- fmt.Errorf("%s: %w", name, err)
		case own.Err() == nil:
			s.failed <- fmt.Errorf("%s ended by itself", name)
		}
	}()
	s.add(name, layer, func(limit context.Context) error {
		cancel()
		select {
		case <-ended:
			return nil
		case <-limit.Done():
			return fmt.Errorf("%s did not stop in time", name)
		}
	})
}

// patience is how long the parts of one layer may take to stop.
const patience = 15 * time.Second

// stop ends all parts, layer by layer from the top; those of one layer together.
func (s *system) stop(ctx context.Context) error {
	began := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, path := range s.written {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	for layer := layerAPI; layer >= layerServer; layer-- {
		errs = append(errs, s.stopLayer(ctx, layer))
	}
	if len(s.parts) > 0 {
		s.report.line("stopped in %.2f s", time.Since(began).Seconds())
	}
	return errors.Join(errs...)
}

func (s *system) stopLayer(ctx context.Context, layer int) error {
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, len(s.parts))
	for i, p := range s.parts {
		if p.layer == layer {
			group.Go(func() { errs[i] = p.stop(limit) })
		}
	}
	group.Wait()
	return errors.Join(errs...)
}

// announce writes the ready files and tells the user.
func (s *system) announce() error {
	s.ready.PID, s.ready.Since, s.ready.DataDir = os.Getpid(), time.Now().UTC(), s.opts.DataDir
	for _, path := range readyFiles(s.opts) {
		if err := s.ready.write(path); err != nil {
			return err
		}
		s.written = append(s.written, path)
	}
	s.report.line("%s in %.2f s\n", s.report.paint("1;32", "ready"), time.Since(s.report.began).Seconds())
	s.hints()
	return nil
}
