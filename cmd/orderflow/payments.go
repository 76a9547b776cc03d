package main

import (
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/config"
	orders "github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/internal/payment/providers"
	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/services/order"
)

func newPayments() *cobra.Command {
	cmd := &cobra.Command{Use: "payments", Short: "Compare payments with the payment provider"}
	cmd.AddCommand(newPaymentsReconcile(), newPaymentsShow())
	return cmd
}

func newPaymentsReconcile() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare the provider's payments with the orders, and print what differs",
		Long: `Lists the payments that the provider has made in a span of time, compares each with its order, and looks up there what was
paid, refunded or changed here in that time and was not listed, and every refund that is not over, however old its charge
is. It changes nothing. Run it each night over more than a day, so that the spans overlap.
Give it the same --payment-provider as the order service; Stripe keeps whole seconds.

It does not find a refund that somebody makes at the provider, without an order's refund, of a charge from before the span.

What differs ends the command with exit code 7. A payment that is under way can differ for a moment: a saga that is not over
is named beside it, and the last five minutes are left out unless --until says otherwise.`,
		Example: `  orderflow payments reconcile --since 25h
  orderflow payments reconcile --since 2026-01-02T00:00:00Z --until 2026-01-03T00:00:00Z -o jsonl`,
		Args: cobra.NoArgs,
		RunE: reconcilePayments,
	}
	cmd.Flags().String("since", "25h", "begin of the span: a time ago, or RFC 3339")
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
		return usage("such as --since 25h --until 5m", "--until must be after --since")
	}
	var r order.Reconciliation
	err = withBothSides(cmd, func(pool *pgxpool.Pool, provider payment.Provider) (err error) {
		r, err = order.Reconcile(cmd.Context(), pool, provider, since, until)
		return ownerError(err)
	})
	if err != nil {
		return err
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
		return fail(exitCheckFailed, "`orderflow payments show ORDER` asks again, `orderflow orders timeline ORDER` shows what is known here", "%d payments differ", n)
	}
	return nil
}

// withBothSides runs f with the orders' database and the payment provider that the flags name.
func withBothSides(cmd *cobra.Command, f func(pool *pgxpool.Pool, provider payment.Provider) error) error {
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
	return f(pool, provider)
}

func newPaymentsShow() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show ORDER",
		Short: "Ask both sides about the payment of one order, or of one refund",
		Long: `Shows what is known here of an order's payment and of its last refund, and asks the provider, also where both say the same
and however old the charge is. The id may be the refund's, which is what saga list shows of one in doubt. It changes nothing.`,
		Example: "  orderflow payments show 0199c3f2-5a10-7cc0-8f3e-4a1b2c3d4e5f",
		Args:    cobra.ExactArgs(1),
		RunE:    showPayment,
	}
	addProviderFlags(cmd, "the running orderflow dev's")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func showPayment(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	id, err := sagaID(args[0])
	if err != nil {
		return err
	}
	var s order.Sides
	err = withBothSides(cmd, func(pool *pgxpool.Pool, provider payment.Provider) (err error) {
		s, err = order.BothSides(cmd.Context(), pool, provider, id)
		return ownerError(err)
	})
	if errors.Is(err, orders.ErrNotFound) {
		return fail(exitNotFound, "`orderflow orders list` shows those that exist", "%w", err)
	}
	if err != nil {
		return err
	}
	t := &table{}
	t.add(cell{"order", "dim"}, s.OrderID)
	t.add(cell{"status", "dim"}, statusCell(s.Order))
	t.add(cell{"saga", "dim"}, sagaState(saga.State(s.Saga)))
	if s.RefundID != "" {
		t.add(cell{"refund", "dim"}, s.RefundID)
		t.add(cell{"refund is", "dim"}, s.RefundState)
		t.add(cell{"refund's saga", "dim"}, sagaState(saga.State(s.RefundSaga)))
	}
	if s.ChargedAt != nil {
		t.add(cell{"charge sent", "dim"}, localTime(*s.ChargedAt))
	}
	t.add(cell{"intent", "dim"}, s.IntentID)
	t.add(cell{"here", "dim"}, s.Here)
	t.add(cell{"there", "dim"}, s.There)
	for _, d := range s.Differences {
		t.add(cell{"differs", "dim"}, cell{d.What, "bad"})
	}
	if err := one(out, s, t); err != nil {
		return err
	}
	if s.There == order.NoSuchIntent && s.ChargedAt != nil {
		since := s.ChargedAt.UTC().Truncate(time.Minute)
		cmd.PrintErrf("the provider's list may know it: orderflow payments reconcile --since %s --until %s\n",
			since.Format(time.RFC3339), since.Add(2*time.Hour).Format(time.RFC3339))
	}
	return nil
}
