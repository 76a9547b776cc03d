package main

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

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
