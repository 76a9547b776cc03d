package main

import (
	"cmp"
	"maps"
	"os"
	"os/user"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

func newDLQReplay() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay [GROUP/NUMBER...]",
		Short: "Hand dead messages back to their consumers",
		Long: `Hands dead messages back to their consumers, which try them again in the order of their key. A message that fails again
is dead again. Name the messages, or select them with flags.

Without --yes it only prints what it would do.`,
		Example: `  orderflow dlq replay email/12 email/13 --yes
  orderflow dlq replay --group email --class business_invalid`,
		RunE: replayParked,
	}
	addParkedFilter(cmd)
	cmd.Flags().Bool("all", false, "select every dead message of every group")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func addYesFlag(cmd *cobra.Command) {
	cmd.Flags().BoolP("yes", "y", false, "do it, rather than print what would be done")
}

func replayParked(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	plan, err := planReplay(cmd, url, args)
	if err != nil {
		return err
	}
	if err := printParked(out, plan); err != nil || len(plan) == 0 {
		return err
	}
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		cmd.PrintErrf("%d dead messages would be replayed; --yes does it\n", len(plan))
		return nil
	}
	ids := map[string][]int64{}
	for _, p := range plan {
		ids[p.Group] = append(ids[p.Group], p.ID)
	}
	replayed := 0
	for _, group := range slices.Sorted(maps.Keys(ids)) {
		err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
			n, err := inbox.Replay(cmd.Context(), pool, inbox.Filter{Group: group, IDs: ids[group]}, operator())
			replayed += n
			return err
		})
		if err != nil {
			cmd.PrintErrf("%d of %d messages were handed back\n", replayed, len(plan))
			return partial(replayed, err)
		}
	}
	cmd.PrintErrf("%d messages were handed back to their consumers\n", replayed)
	if replayed < len(plan) {
		return fail(exitPartial, "", "%d messages had been resolved by somebody else", len(plan)-replayed)
	}
	return nil
}

// planReplay returns the dead messages that the arguments or flags select.
func planReplay(cmd *cobra.Command, url string, names []string) ([]inbox.Parked, error) {
	all, _ := cmd.Flags().GetBool("all")
	switch {
	case len(names) == 0 && !filtered(cmd) && !all:
		return nil, usage("`orderflow dlq list` shows them; --all selects all", "name the messages to replay, or select them with flags")
	case len(names) > 0 && (filtered(cmd) || all):
		return nil, usage("", "name the messages or select them with flags, not both")
	case len(names) == 0:
		return findParked(cmd, url, inbox.StateDead)
	}
	var plan []inbox.Parked
	for _, name := range names {
		p, err := loadParked(cmd, name)
		if err != nil {
			return nil, err
		}
		if p.State != inbox.StateDead {
			return nil, fail(exitConflict, "it is tried again by itself", "%s is %s, not dead", name, p.State)
		}
		plan = append(plan, p)
	}
	return plan, nil
}

func newDLQDiscard() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discard GROUP/NUMBER...",
		Short: "Give parked messages up for good",
		Long: `Gives parked messages up: they are never handled, and the next message of their key is tried. The reason and who gave it
are kept. There is no way back.

Without --yes it only prints what it would do.`,
		Example: "  orderflow dlq discard email/12 --reason 'test message' --yes",
		Args:    cobra.MinimumNArgs(1),
		RunE:    discardParked,
	}
	cmd.Flags().String("reason", "", "why (required)")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func discardParked(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	reason := stringFlag(cmd, "reason")
	if reason == "" {
		return usage("it is kept with the message's id", "--reason is required")
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	var plan []inbox.Parked
	for _, name := range args {
		p, err := loadParked(cmd, name)
		if err != nil {
			return err
		}
		plan = append(plan, p)
	}
	if err := printParked(out, plan); err != nil {
		return err
	}
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		cmd.PrintErrf("%d messages would be discarded for good; --yes does it\n", len(plan))
		return nil
	}
	for i, p := range plan {
		err := withGroup(cmd.Context(), url, p.Group, func(pool *pgxpool.Pool) error {
			return inbox.DiscardParked(cmd.Context(), pool, p.ID, reason, operator())
		})
		if err != nil {
			cmd.PrintErrf("%d of %d messages were discarded\n", i, len(plan))
			return partial(i, parkedError(err, parkedName(p)))
		}
	}
	cmd.PrintErrf("%d messages were discarded\n", len(plan))
	return nil
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
