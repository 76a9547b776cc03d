package main

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/orderflow-dev/orderflow/internal/config"
)

// bindEnvironment sets the flags that the command line left alone from ORDERFLOW_… variables.
func bindEnvironment(cmd *cobra.Command) error {
	if unknown := config.Unknown(os.Environ(), allFlags(cmd.Root())...); len(unknown) > 0 {
		cmd.PrintErrf("warning: no flag is set by %s\n", strings.Join(unknown, ", "))
	}
	return invalid(cmd, config.Bind(cmd.Flags(), os.LookupEnv))
}

// allFlags returns the flags of every command: a variable that only concerns another command is no typing error.
func allFlags(cmd *cobra.Command) []*pflag.FlagSet {
	sets := []*pflag.FlagSet{cmd.Flags()}
	for _, child := range cmd.Commands() {
		sets = append(sets, allFlags(child)...)
	}
	return sets
}

// invalid turns the mistakes of a configuration into an error that says where to read on.
func invalid(cmd *cobra.Command, err error) error {
	if !errors.Is(err, config.ErrInvalid) {
		return err
	}
	return usage("see `"+cmd.CommandPath()+" --help`", "%w", err)
}
