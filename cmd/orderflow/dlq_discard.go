package main

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

func newDLQDiscard() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discard [GROUP/NUMBER...]",
		Short: "Give parked messages up for good",
		Long: `Gives parked messages up: they are never handled, and the next message of their key is tried. The reason and who gave it
are kept. There is no way back; "orderflow dlq export" before it keeps a copy.

Name the messages, or select them with flags, which select dead ones unless --state says otherwise. Without --yes it only
prints what it would do, as with --dry-run. It ends at a message whose state has changed since: somebody has replayed it. Exit code
6: some had been discarded before; otherwise 4.`,
		Example: `  orderflow dlq discard email/12 --reason 'test message' --yes
  orderflow dlq discard --group order --fingerprint 3f2a91c07b1d --reason 'refunded by hand' --dry-run`,
		RunE: discardParked,
	}
	cmd.Flags().String("reason", "", "why (required)")
	addParkedFilter(cmd)
	addStateFlag(cmd, inbox.StateDead)
	cmd.Flags().Bool("all", false, "select every message in that state of every group")
	cmd.Flags().Bool("dry-run", false, "only print what would be done, even with --yes")
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
	state, err := stateFromFlag(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	plan, err := chooseParked(cmd, url, args, state)
	if err != nil {
		return err
	}
	if err := printParked(out, plan); err != nil || len(plan) == 0 {
		return err
	}
	yes, _ := cmd.Flags().GetBool("yes")
	if dry, _ := cmd.Flags().GetBool("dry-run"); dry || !yes {
		cmd.PrintErrf("%d messages would be discarded for good; --yes does it\n", len(plan))
		return nil
	}
	discarded, err := discardAll(cmd, url, plan, reason)
	if err != nil {
		cmd.PrintErrf("%d of %d messages were discarded\n", discarded, len(plan))
		return partial(discarded, err)
	}
	cmd.PrintErrf("%d messages were discarded\n", discarded)
	return nil
}

func discardAll(cmd *cobra.Command, url string, plan []inbox.Parked, reason string) (discarded int, err error) {
	show := newProgress(cmd.ErrOrStderr())
	defer show.end()
	for len(plan) > 0 {
		group := plan[0].Group
		err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
			for len(plan) > 0 && plan[0].Group == group {
				if err := inbox.DiscardParked(cmd.Context(), pool, plan[0], reason, operator()); err != nil {
					return parkedError(err, parkedName(plan[0]))
				}
				discarded++
				plan = plan[1:]
				show.at(discarded, discarded+len(plan), "discarded")
			}
			return nil
		})
		if err != nil {
			return discarded, err
		}
	}
	return discarded, nil
}
