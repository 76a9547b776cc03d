// Package httpserver runs the services' HTTP servers: with limits, with health endpoints, and with an end that cuts no
// request off.
package httpserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Options says how a server treats its clients. The zero value is right for an API.
type Options struct {
	// ReadHeaderTimeout is how long a client may take to send a request's header. How long the body may take is the
	// handler's business. Default 5 s.
	ReadHeaderTimeout time.Duration
	// IdleTimeout is how long a connection stays open without a request. Default 60 s.
	IdleTimeout time.Duration
	// WriteTimeout is how long an answer may take from the end of the request's header. Default none: handlers that stream
	// set their own (http.ResponseController).
	WriteTimeout time.Duration
	// MaxHeaderBytes bounds a request's header. Default 16 KiB.
	MaxHeaderBytes int
	// Ops turns red when the end begins, so that load balancers stop sending. Optional.
	Ops *Ops
	// DrainDelay is how long the server goes on accepting requests after that, while load balancers still find out.
	// Default 0: behind one, a little more than the period of its check.
	DrainDelay time.Duration
	// DrainTimeout is how long requests may take to finish after that. Default 15 s.
	DrainTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.ReadHeaderTimeout == 0 {
		o.ReadHeaderTimeout = 5 * time.Second
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = time.Minute
	}
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = 16 << 10
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 15 * time.Second
	}
	return o
}

// Listen opens a TCP listener and, when that fails, says what to do.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; choose another address or end what listens there", addr, err)
	}
	return ln, nil
}

// Run serves handler on ln, which it closes, until ctx ends. Then readiness turns red, requests that have begun finish (see
// [Draining] for those that wait), and Run returns nil. It returns an error when serving fails, or when requests had to
// be cut off because they did not finish in Options.DrainTimeout.
//
// The contexts of requests do not end with ctx: work that was accepted is done.
func Run(ctx context.Context, log *slog.Logger, ln net.Listener, handler http.Handler, opts Options) error {
	opts = opts.withDefaults()
	draining := make(chan struct{})
	base := context.WithValue(context.WithoutCancel(ctx), drainingKey{}, (<-chan struct{})(draining))
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: opts.ReadHeaderTimeout,
		WriteTimeout:      opts.WriteTimeout,
		IdleTimeout:       opts.IdleTimeout,
		MaxHeaderBytes:    opts.MaxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		// What clients do wrong on a connection is no news: debug.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	if opts.Ops != nil {
		opts.Ops.Drain()
	}
	// Not before the delay: a long poll that is answered early only comes back at once.
	wait(served, opts.DrainDelay)
	close(draining)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), opts.DrainTimeout)
	defer cancel()
	err := server.Shutdown(limit)
	if err != nil {
		_ = server.Close() // it reports the listener, which Shutdown has closed
		err = fmt.Errorf("end HTTP on %s: requests were cut off after %v: %w", ln.Addr(), opts.DrainTimeout, err)
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), serveErr))
	}
	return err
}

// wait waits, unless the server ends by itself, whose error it leaves in place.
func wait(served chan error, delay time.Duration) {
	if delay <= 0 {
		return
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case err := <-served:
		served <- err
	case <-timer.C:
	}
}

type drainingKey struct{}

// Draining returns a channel that is closed when the server wants to end. A handler that waits for something, a long poll or
// a stream, then answers with what it has. It is nil, and so never ready, for a request that [Run] does not serve.
func Draining(ctx context.Context) <-chan struct{} {
	draining, _ := ctx.Value(drainingKey{}).(<-chan struct{})
	return draining
}
