package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/bench/internal/legs"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/services/order"
	"github.com/orderflow-dev/orderflow/services/sandbox"
)

const (
	orderCommand   = "order"
	sandboxCommand = "sandbox"
)

// quiet tells of what should not be while sagas run as they are meant to.
func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// orderService is the order service in a process of its own. Its arguments are the database, the payment provider and Kafka.
func orderService(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return errors.New("order: three arguments or more are needed")
	}
	if err := legs.Say(true); err != nil {
		return err
	}
	return order.Run(ctx, quiet(), order.Config{DatabaseURL: args[0], Payment: providers.Config{URL: args[1]}, Brokers: args[2:]})
}

// paymentProvider is the sandbox in a process of its own, which says its URL. Its argument is the folder of its journal.
func paymentProvider(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("sandbox: one argument is needed")
	}
	var listeners [2]net.Listener
	for i := range listeners {
		var err error
		if listeners[i], err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return sandbox.Run(ctx, quiet(), sandbox.Config{Listener: listeners[0], SMTPListener: listeners[1], DataDir: args[0]})
	})
	group.Go(func() error { return legs.Say("http://" + listeners[0].Addr().String()) })
	return group.Wait()
}
