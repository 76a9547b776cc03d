package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

const longHelp = `Orderflow takes orders over HTTP and carries each through payment, stock, email and warehouse, without losing one and
without doing anything twice.

Start with:  orderflow dev
then, in another shell:  orderflow orders create --random --wait

Every flag can also be set as an environment variable: --database-url is ORDERFLOW_DATABASE_URL. Secrets can be read from
a file: ORDERFLOW_API_KEY_FILE=/run/secrets/key. A flag wins over the environment.

Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 conflict, 5 a dependency is unreachable, 6 partly done, 7 check
failed, 124 timeout, 130 interrupted.`

// newRoot returns the command tree. Data goes to stdout, everything else to stderr.
func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:               "orderflow",
		Short:             "Run the order system and look after it",
		Long:              longHelp,
		SilenceErrors:     true, // run prints them, with what to do next
		SilenceUsage:      true,
		Version:           buildVersion().Version,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return bindEnvironment(cmd) },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("see `"+cmd.CommandPath()+" --help`", "%w", err)
	})
	root.AddGroup(
		&cobra.Group{ID: "system", Title: "Run the system:"},
		&cobra.Group{ID: "service", Title: "Run one service:"},
		&cobra.Group{ID: "use", Title: "Use and inspect it:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add("system", newDev(), newMigrate())
	add("service", newServices()...)
	add("use", newOrders(), newProducts(), newKeys(), newGroups(), newOutbox(), newDLQ(), newSaga(), newPayments(), newLoad())
	root.AddCommand(newHealthcheck(), newVersion())
	root.InitDefaultCompletionCmd()
	refineUsage(root)
	return root
}

// refineUsage makes every misuse an error with exit code 2 that says where to read on. Cobra by itself takes an unknown
// word below a command group for a request for help, and succeeds.
func refineUsage(cmd *cobra.Command) {
	for _, child := range cmd.Commands() {
		refineUsage(child)
	}
	cmd.SuggestionsMinimumDistance = 2
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		}
		return
	}
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(cmd, args); err != nil {
			return usage("usage: "+cmd.UseLine(), "%w", err)
		}
		return nil
	}
}

func unknownCommand(cmd *cobra.Command, word string) error {
	hint := "see `" + cmd.CommandPath() + " --help`"
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		for i, name := range near {
			near[i] = "`" + cmd.CommandPath() + " " + name + "`"
		}
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return usage(hint, "unknown command %q for %q", word, cmd.CommandPath())
}
