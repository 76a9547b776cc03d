package main

import (
	"cmp"
	"os"
	"os/user"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

func addYesFlag(cmd *cobra.Command) {
	cmd.Flags().BoolP("yes", "y", false, "do it, rather than print what would be done")
}

// chooseParked returns the parked messages in state ("" is any) that names or flags select.
func chooseParked(cmd *cobra.Command, url string, names []string, state string) ([]inbox.Parked, error) {
	all, _ := cmd.Flags().GetBool("all")
	switch {
	case len(names) == 0 && !filtered(cmd) && !all:
		return nil, usage("`orderflow dlq list` shows them; --all selects all", "name the messages, or select them with flags")
	case len(names) > 0 && (filtered(cmd) || all):
		return nil, usage("", "name the messages or select them with flags, not both")
	case len(names) == 0:
		return findParked(cmd, url, state)
	}
	var chosen []inbox.Parked
	for _, name := range names {
		p, err := loadParked(cmd, name)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, p)
	}
	return chosen, nil
}

// partial gives err the exit code that tells a script to look what is left, if something was done before it.
func partial(done int, err error) error {
	if done == 0 {
		return err
	}
	return &failure{code: exitPartial, err: err, hint: hintFor(err)}
}

// operator names the person at the keyboard, for the audit.
func operator() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return cmp.Or(os.Getenv("USER"), "unknown")
}
