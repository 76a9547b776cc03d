package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/config"
)

func newHealthcheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a service whether it is ready",
		Long: `Asks /readyz of the service that listens at --ops-addr, or at --addr when that is empty, and exits with 0 when it is
ready, 7 when it is not, and 5 when nothing answers. In a container it finds both in the environment that the service was
started with, so that a health check needs no other program in the image.`,
		Example: "  orderflow healthcheck --ops-addr 127.0.0.1:8082",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flag, addr := "ops-addr", stringFlag(cmd, "ops-addr")
			if addr == "" {
				flag, addr = "addr", stringFlag(cmd, "addr")
			}
			patience, err := cmd.Flags().GetDuration("timeout")
			if err != nil {
				return err
			}
			var check config.Check
			check.Address(flag, addr)
			check.Positive("timeout", patience)
			if err := invalid(cmd, check.Err()); err != nil {
				return err
			}
			return healthcheck(cmd.Context(), cmd.OutOrStdout(), addr, patience)
		},
	}
	cmd.Flags().String("ops-addr", "", "where the service serves /readyz")
	cmd.Flags().String("addr", "127.0.0.1:8080", "where the service serves /readyz, if it has no address of its own for that")
	cmd.Flags().Duration("timeout", 2*time.Second, "how long to wait for the answer")
	return cmd
}

func healthcheck(ctx context.Context, w io.Writer, addr string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	url := "http://" + dialable(addr) + "/readyz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usage("", "ask %s: %w", url, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fail(exitUnreachable, "is the service running, and does it listen there?", "ask %s: %w", url, err)
	}
	defer func() { _ = resp.Body.Close() }()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fail(exitUnreachable, "", "read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fail(exitCheckFailed, "", "%s answered %s: %s", url, resp.Status, strings.TrimSpace(string(said)))
	}
	_, err = fmt.Fprintln(w, "ready")
	return err
}

// dialable turns an address to listen on into one to connect to: ":8080" and "0.0.0.0:8080" are this machine.
func dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
