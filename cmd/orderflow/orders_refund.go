package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
)

func newOrdersRefund() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "refund ID",
		Short: "Pay back an order that is completed or shipped",
		Long: `Has the money of an order paid back, and its user told of it. The reason is in that mail; it is kept with the name of the key,
which must be a service key. An order is refunded once: asked again, the answer is the first one's.

An order that was not handed over yet, and now never will be, gives its stock back. One that is neither completed nor
shipped cannot be refunded (exit code 4): cancel a pending one.

With --wait the command returns once the money is back.`,
		Example: "  orderflow orders refund 0199c0de-0000-7000-8000-000000000000 --reason 'it arrived broken' --wait",
		Args:    cobra.ExactArgs(1),
		RunE:    refundOrder,
	}
	cmd.Flags().String("reason", "", "why, in words for the user (required)")
	addWaitFlags(cmd, "wait until the money is back")
	addAPIFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

func refundOrder(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	reason := stringFlag(cmd, "reason")
	if reason == "" {
		return usage("the user reads it", "--reason is required")
	}
	client, err := newClient(cmd, 1)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel, err := waitContext(cmd)
	if err != nil {
		return err
	}
	defer cancel()
	r, err := client.Refund(ctx, args[0], reason)
	if err != nil {
		return orderError(err, args[0])
	}
	if r.Reason != reason {
		cmd.PrintErrf("the refund had been asked for before, because: %s\n", r.Reason)
	}
	if wait, _ := cmd.Flags().GetBool("wait"); wait {
		if err := awaitRefund(ctx, client, r); err != nil {
			return err
		}
	}
	t := &table{}
	t.add(cell{"order", "dim"}, r.OrderID)
	t.add(cell{"refund", "dim"}, r.RefundID)
	t.add(cell{"reason", "dim"}, r.Reason)
	t.add(cell{"asked for", "dim"}, localTime(r.RequestedAt)+" by "+r.RequestedBy)
	return one(out, r.Raw, t)
}

// awaitRefund returns nil once the order is refunded.
func awaitRefund(ctx context.Context, client *apiclient.Client, r apiclient.Refund) error {
	for {
		timeline, err := client.Timeline(ctx, r.OrderID)
		switch {
		case err == nil && timeline.Status == "refunded":
			return nil
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return fail(exitTimeout, "`orderflow orders timeline "+r.OrderID+"` shows how far it came; --timeout waits longer", "order %s is not refunded yet", r.OrderID)
		case err != nil && !apiclient.Unknown(err):
			return err
		}
		for _, e := range timeline.Entries {
			if e.Source == "refund" && e.What == "refused" && !e.At.Before(r.RequestedAt) {
				return fail(exitFailure, "settle it with the provider, then ask again", "the refund was refused: %s", e.Detail)
			}
		}
		sleep(ctx, 300*time.Millisecond)
	}
}
