package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/cmd/orderflow/dev"
)

// Commands that use a system find it by their flags or, for what no flag says, by the ready.json of the `orderflow dev`
// that runs on the data folder.

func addDataDirFlag(cmd *cobra.Command) {
	cmd.Flags().String("data-dir", dev.DefaultDataDir(), "data folder of the orderflow dev to use")
}

func addAPIFlags(cmd *cobra.Command) {
	cmd.Flags().String("api", "", "base URL of the api (default: the running orderflow dev)")
	cmd.Flags().String("api-key", "", "key to identify with (default: the running orderflow dev's)")
	addDataDirFlag(cmd)
}

// newClient returns a client of the api that the flags name, or of the running development system.
func newClient(cmd *cobra.Command, conns int) (*apiclient.Client, error) {
	base, key := stringFlag(cmd, "api"), stringFlag(cmd, "api-key")
	if base == "" || key == "" {
		ready, err := running(cmd, "--api URL and --api-key KEY")
		if err != nil {
			return nil, err
		}
		if base == "" {
			base = ready.API
		}
		if key == "" && base == ready.API {
			key = ready.APIKey // a key of one system is nothing to send to another
		}
	}
	if key == "" {
		return nil, usage("set --api-key or ORDERFLOW_API_KEY", "no api key for %s", base)
	}
	return apiclient.New(base, key, conns), nil
}

// running returns where the development system of --data-dir listens.
func running(cmd *cobra.Command, otherwise string) (dev.Ready, error) {
	dir := stringFlag(cmd, "data-dir")
	ready, err := dev.ReadReady(dir)
	if errors.Is(err, dev.ErrNotRunning) {
		return ready, fail(exitUnreachable, fmt.Sprintf("start one, or name another system with %s", otherwise),
			"no orderflow dev is running on %s", dir)
	}
	return ready, err
}

func stringFlag(cmd *cobra.Command, name string) string {
	f := cmd.Flags().Lookup(name)
	if f == nil {
		panic("no flag --" + name) // a programmer's mistake, which the first run shows
	}
	return f.Value.String()
}
