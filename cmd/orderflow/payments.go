package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/services/order"
)

func newPayments() *cobra.Command {
	cmd := &cobra.Command{Use: "payments", Short: "Compare payments with the payment provider"}
	cmd.AddCommand(newPaymentsReconcile())
	return cmd
}

func newPaymentsReconcile() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare the provider's payments with the orders, and print what differs",
		Long: `Lists the payments that the provider has made in a span of time, compares each with its order, and looks up there what is
paid here and was not listed. It changes nothing. Run it each night over the last day or two.
Give it the same --payment-provider as the order service; Stripe keeps whole seconds.

What differs ends the command with exit code 7. A payment that is under way can differ for a moment: a saga that is not over
is named beside it, and the last five minutes are left out unless --until says otherwise.`,
		Example: `  orderflow payments reconcile --since 24h
  orderflow payments reconcile --since 2026-01-02T00:00:00Z --until 2026-01-03T00:00:00Z -o jsonl`,
		Args: cobra.NoArgs,
		RunE: reconcilePayments,
	}
	cmd.Flags().String("since", "24h", "begin of the span: a time ago, or RFC 3339")
	cmd.Flags().String("until", "5m", "end of the span: a time ago, or RFC 3339")
	addProviderFlags(cmd, "the running orderflow dev's")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func reconcilePayments(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	since, err := pointInTime(cmd, "since")
	if err != nil {
		return err
	}
	until, err := pointInTime(cmd, "until")
	if err != nil {
		return err
	}
	if !since.Before(until) {
		return usage("such as --since 24h --until 5m", "--until must be after --since")
	}
	var check config.Check
	cfg := paymentProvider(cmd, &check)
	if err := invalid(cmd, check.Err()); err != nil {
		return err
	}
	if cfg.Name == providers.Sandbox && cfg.URL == "" {
		ready, err := running(cmd, "--payment-url URL and --database-url URL")
		if err != nil {
			return err
		}
		cfg.URL = ready.Sandbox
	}
	provider, err := providers.Open(cfg)
	if err != nil {
		return err
	}
	defer provider.Close()
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	r, err := order.Reconcile(cmd.Context(), pool, provider, since, until)
	if err != nil {
		return ownerError(err)
	}
	t := &table{header: []string{"ORDER", "INTENT", "WHAT", "HERE", "THERE", "SAGA"}, empty: "no differences"}
	for _, d := range r.Differences {
		t.add(d.OrderID, d.IntentID, cell{d.What, "bad"}, d.Here, d.There, d.Saga)
	}
	if err := list(out, r.Differences, t); err != nil {
		return err
	}
	cmd.PrintErrf("%d payments of %s to %s compared\n", r.Compared, since.Format(time.DateTime), until.Format(time.DateTime))
	if n := len(r.Differences); n > 0 {
		return fail(exitCheckFailed, "`orderflow orders timeline ORDER` shows what is known here", "%d payments differ", n)
	}
	return nil
}
