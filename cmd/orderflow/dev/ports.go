package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// listen listens on the port of the loopback interface, or on a free one when it is taken and the user has not insisted.
// The note, if any, says so.
func listen(ctx context.Context, port int, insisted bool) (ln net.Listener, note string, err error) {
	var config net.ListenConfig
	ln, err = config.Listen(ctx, "tcp", loopback(port))
	if err == nil {
		return ln, "", nil
	}
	if !errors.Is(err, syscall.EADDRINUSE) || insisted {
		return nil, "", fmt.Errorf("listen on port %d: %w", port, err)
	}
	if ln, err = config.Listen(ctx, "tcp", loopback(0)); err != nil {
		return nil, "", fmt.Errorf("listen on a free port: %w", err)
	}
	return ln, fmt.Sprintf("port %d is taken", port), nil
}

// freePort finds a port for the health endpoints of a service in this process, which the ready file tells.
func freePort(ctx context.Context) (int, error) {
	ln, _, err := listen(ctx, 0, true)
	if err != nil {
		return 0, err
	}
	return portOf(ln), ln.Close()
}

func portOf(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

func join(notes ...string) string {
	var said []string
	for _, note := range notes {
		if note != "" {
			said = append(said, note)
		}
	}
	return strings.Join(said, ", ")
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
