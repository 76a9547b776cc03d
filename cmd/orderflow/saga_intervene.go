package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/services/order"
)

// intervention is what a person does to a saga, in one transaction.
type intervention func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error

// newIntervention returns a command that shows what it is about and, with --yes, does it.
func newIntervention(use, short, long, example string, prepare func(*cobra.Command) (intervention, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use + " ORDER",
		Short: short,
		Long: long + `

The reason and who gave it are kept. Without --yes it only shows the saga and its revision. With --yes it takes --rev, the
revision that was looked at, and is refused with exit code 4 if the saga has moved since. One in doubt moves every 5 minutes,
when the provider is asked about it again: look again then.`,
		Example: example,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			do, err := prepare(cmd)
			if err != nil {
				return err
			}
			return intervene(cmd, args[0], use, do)
		},
	}
	cmd.Flags().String("reason", "", "why (required)")
	cmd.Flags().Int64("rev", 0, "the revision that was looked at (required with --yes)")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func intervene(cmd *cobra.Command, arg, verb string, do intervention) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	id, err := sagaID(arg)
	if err != nil {
		return err
	}
	reason := stringFlag(cmd, "reason")
	if reason == "" {
		return usage("it is kept with the saga", "--reason is required")
	}
	yes, _ := cmd.Flags().GetBool("yes")
	// What else is done is done to the step that the person has seen; to try again is right at any step.
	if yes && verb != "retry" && !cmd.Flags().Changed("rev") {
		return usage("without --yes the command shows the saga and its revision", "--rev is required with --yes")
	}
	ctx := cmd.Context()
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	h, err := saga.Load(ctx, pool, id)
	if err != nil {
		return sagaError(err)
	}
	op := saga.Operator{By: operator(), Reason: reason, Rev: h.Instance.Rev}
	if cmd.Flags().Changed("rev") {
		op.Rev, _ = cmd.Flags().GetInt64("rev")
	}
	if !yes {
		cmd.PrintErrf("%s would be done to this saga; --rev %d --yes does it\n", verb, h.Instance.Rev)
		return printHistory(out, h)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return do(ctx, tx, id, op) })
	if err != nil {
		return sagaError(err)
	}
	if h, err = saga.Load(ctx, pool, id); err != nil {
		return sagaError(err)
	}
	cmd.PrintErrf("%s is done; an engine goes on from here\n", verb)
	return printHistory(out, h)
}

// always is for commands without flags of their own.
func always(do intervention) func(*cobra.Command) (intervention, error) {
	return func(*cobra.Command) (intervention, error) { return do, nil }
}

func newSagaCompensate() *cobra.Command {
	return newIntervention("compensate", "Turn a saga round: undo what it did, and fail its order",
		`Takes back what the saga did, in reverse: the charge is cancelled or refunded and the stock is released. It is refused once
the order is completed; refund it then.`,
		`  orderflow saga compensate 0199… --reason 'fraud' --rev 7 --yes`, always(saga.Compensate))
}

func newSagaSkip() *cobra.Command {
	return newIntervention("skip", "Pass over the step that a stuck saga stands at, as if it had succeeded",
		`Passes over the step, or the compensation, that a stuck saga stands at. What it should have done is then yours to do by
hand: nothing will try it again.`,
		`  orderflow saga skip 0199… --reason 'refunded by hand, re_123' --rev 7 --yes`, always(saga.Skip))
}

func newSagaResolve() *cobra.Command {
	cmd := newIntervention("resolve", "Say whether the charge, or the refund, of a saga in doubt happened",
		`Settles a charge whose outcome nobody could tell, by what you have seen at the provider: look there for the order's id, which
is the charge's reference. With --charged the order goes on, with --not-charged it fails and its stock is released.

Settles a refund in the same way: with --refunded the order is refunded, with --not-refunded it stays as it is, and its
refund may be asked for again.`,
		`  orderflow saga resolve 0199… --charged --reason 'seen in the provider’s list' --rev 7 --yes
  orderflow saga resolve 0199… --not-charged --reason 'the provider has no such charge' --rev 7 --yes
  orderflow saga resolve 0199… --refunded re_123 --reason 'seen in the provider’s list' --rev 7 --yes`, prepareResolve)
	cmd.Flags().Bool("charged", false, "the provider has charged it")
	cmd.Flags().Bool("not-charged", false, "the provider has not charged it, and never will")
	cmd.Flags().String("intent", "", "with --charged: the provider's id of the charge, where the order has not stored it")
	cmd.Flags().String("refunded", "", "the provider has refunded it, under this id of the provider's")
	cmd.Flags().Bool("not-refunded", false, "the provider has not refunded it, and never will")
	return cmd
}

func prepareResolve(cmd *cobra.Command) (intervention, error) {
	said := 0
	for _, name := range []string{"charged", "not-charged", "refunded", "not-refunded", "intent"} {
		if !cmd.Flags().Changed(name) {
			continue
		}
		// An empty shell variable must not say the opposite of what was meant, nor take the next flag for an id.
		if value := stringFlag(cmd, name); value == "" || value == "false" || strings.HasPrefix(value, "-") {
			return nil, usage("was a shell variable empty?", "--%s %q says nothing", name, value)
		}
		if name != "intent" {
			said++
		}
	}
	if said != 1 {
		return nil, usage("look the order's id up at the provider", "say --charged or --not-charged, or of a refund --refunded ID or --not-refunded")
	}
	charged, _ := cmd.Flags().GetBool("charged")
	refund, intent := stringFlag(cmd, "refunded"), stringFlag(cmd, "intent")
	if !charged && intent != "" {
		return nil, usage("", "--intent goes with --charged")
	}
	return func(ctx context.Context, tx pgx.Tx, id uuid.UUID, op saga.Operator) error {
		var (
			resolution saga.Resolution
			err        error
		)
		switch {
		case charged:
			resolution, err = order.Charged(ctx, tx, id, intent)
		case refund != "":
			resolution, err = order.PaidBack(ctx, tx, id, refund)
		}
		if errors.Is(err, order.ErrNoCharge) {
			return fail(exitConflict, "`orderflow saga show` tells what it waits for; --intent gives the provider's id of the charge", "%w", err)
		}
		if err != nil {
			return fmt.Errorf("resolve saga %s: %w", id, err)
		}
		return saga.Resolve(ctx, tx, id, resolution, op)
	}, nil
}
