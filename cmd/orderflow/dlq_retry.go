package main

import (
	"maps"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

func newDLQRetry() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retry [GROUP/NUMBER...]",
		Short: "Have held messages tried now instead of later",
		Long: `Makes held messages due: their consumers try them now, and what waits behind them follows, in the order of their key. By
themselves they would be tried up to 30 minutes later. It is for when the cause is mended: after a deploy that failed most
messages of a type for good has been replaced, they are held, not dead. A consumer that starts does not try them sooner.

Name the messages, or select them with flags. Without --yes it only prints what it would do.`,
		Example: `  orderflow dlq retry --group order --fingerprint 3f2a91c07b1d --yes
  orderflow dlq retry --all --yes`,
		RunE: retryParked,
	}
	addParkedFilter(cmd)
	cmd.Flags().Bool("all", false, "select every held message of every group")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func retryParked(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	plan, err := chooseParked(cmd, url, args, inbox.StateHeld)
	if err != nil {
		return err
	}
	byGroup := map[string][]inbox.Parked{}
	for _, p := range plan {
		if p.State != inbox.StateHeld {
			return fail(exitConflict, "`orderflow dlq replay` is for dead ones; those that wait follow by themselves", "%s is %s, not held", parkedName(p), p.State)
		}
		byGroup[p.Group] = append(byGroup[p.Group], p)
	}
	if err := printParked(out, plan); err != nil || len(plan) == 0 {
		return err
	}
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		cmd.PrintErrf("%d held messages would be tried now; --yes does it\n", len(plan))
		return nil
	}
	keys := 0
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
			n, err := inbox.Retry(cmd.Context(), pool, inbox.Filter{Group: group, IDs: idsOf(byGroup[group])})
			keys += n
			return err
		})
		if err != nil {
			return partial(keys, err)
		}
	}
	cmd.PrintErrf("%d held keys are due now\n", keys)
	return nil
}
