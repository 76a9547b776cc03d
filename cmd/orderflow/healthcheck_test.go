package main

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/httpserver"
)

func TestHealthcheckSaysWhetherAServiceIsReady(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	ops := httpserver.NewOps(nil, httpserver.Check{Name: "postgres", Ready: func(context.Context) error {
		if away.Load() {
			return errors.New("connection refused")
		}
		return nil
	}})
	server := httptest.NewServer(ops)
	defer server.Close()
	_, port, _ := strings.Cut(server.Listener.Addr().String(), ":")
	ask := func(args ...string) result {
		return orderflow(t.Context(), append([]string{"healthcheck"}, args...)...)
	}

	for _, args := range [][]string{
		{"--ops-addr", "127.0.0.1:" + port},
		{"--ops-addr", ":" + port, "--addr", unused(t)}, // as it was told to listen
		{"--addr", "0.0.0.0:" + port},
	} {
		if got := ask(args...); got.code != exitOK || got.stdout != "ready\n" {
			t.Errorf("healthcheck %v of a ready service = %d, %q, %q; want 0 and ready", args, got.code, got.stdout, got.stderr)
		}
	}
	away.Store(true)
	if got := ask("--addr", ":"+port); got.code != exitCheckFailed || !strings.Contains(got.stderr, "postgres") {
		t.Errorf("healthcheck of a service without Postgres = %d, %q; want %d and what is missing", got.code, got.stderr, exitCheckFailed)
	}
	if got := ask("--addr", unused(t)); got.code != exitUnreachable || !strings.Contains(got.stderr, "running") {
		t.Errorf("healthcheck of nothing = %d, %q; want %d", got.code, got.stderr, exitUnreachable)
	}
	if got := ask("--addr", "nonsense"); got.code != exitUsage {
		t.Errorf("healthcheck of nonsense = %d, %q; want %d", got.code, got.stderr, exitUsage)
	}
}
