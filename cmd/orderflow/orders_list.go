package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/internal/money"
)

func newOrdersList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List orders, the newest first",
		Example: `  orderflow orders list --limit 5
  orderflow orders list --user ada --status pending
  orderflow orders list --limit 1000 -o jsonl | jq -r .id`,
		Args: cobra.NoArgs,
		RunE: listOrders,
	}
	cmd.Flags().String("user", "", "only this user's orders")
	cmd.Flags().String("status", "", "only orders in this state: pending, completed, shipped, rejected, payment_failed, cancelled or refunded")
	cmd.Flags().Int("limit", 20, "how many at most")
	addAPIFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

func listOrders(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	limit, err := cmd.Flags().GetInt("limit")
	if err != nil {
		return err
	}
	if limit < 1 {
		return usage("", "--limit must be at least 1, not %d", limit)
	}
	client, err := newClient(cmd, 1)
	if err != nil {
		return err
	}
	defer client.Close()
	const page = 100
	filter := apiclient.Filter{UserID: stringFlag(cmd, "user"), Status: stringFlag(cmd, "status")}
	var docs []json.RawMessage
	t := &table{header: []string{"ID", "USER", "STATUS", "TOTAL", "CREATED"}, empty: "no orders"}
	for len(docs) < limit {
		filter.Limit = min(page, limit-len(docs))
		got, err := client.Orders(cmd.Context(), filter)
		if err != nil {
			return err
		}
		for _, o := range got.Orders {
			docs = append(docs, o.Raw)
			t.add(o.ID, o.UserID, statusCell(o.Status), money.Format(o.Total.Amount, o.Total.Currency), localTime(o.CreatedAt))
		}
		if filter.Cursor = got.Next; filter.Cursor == "" {
			break
		}
	}
	return list(out, docs, t)
}

func newOrdersCancel() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel an order that is still pending",
		Long: `Asks for an order to be cancelled. A cancel that is accepted always wins: the order is not completed, and what was
charged is refunded. An order that is completed cannot be cancelled (exit code 4).

With --wait the command returns once the order has ended.`,
		Example: "  orderflow orders cancel 0199c0de-0000-7000-8000-000000000000 --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withOrder(cmd, args[0], (*apiclient.Client).Cancel)
		},
	}
	addWaitFlags(cmd, "wait until the order has ended")
	addAPIFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

// orderError names the order in an answer that leaves it out.
func orderError(err error, id string) error {
	var p *apiclient.Problem
	if errors.As(err, &p) && p.Status == http.StatusNotFound {
		return fail(exitNotFound, "`orderflow orders list` shows those that exist", "there is no order %s", id)
	}
	return err
}

func printOrder(out *output, o apiclient.Order) error {
	t := &table{}
	t.add(cell{"id", "dim"}, o.ID)
	t.add(cell{"user", "dim"}, o.UserID)
	status := statusCell(o.Status)
	status.text += because(o.Reason)
	t.add(cell{"status", "dim"}, status)
	t.add(cell{"total", "dim"}, money.Format(o.Total.Amount, o.Total.Currency))
	for i, item := range o.Items {
		name := cell{style: "dim"}
		if i == 0 {
			name.text = "items"
		}
		t.add(name, fmt.Sprintf("%d × %s %s", item.Quantity, item.SKU, item.Name))
	}
	t.add(cell{"created", "dim"}, localTime(o.CreatedAt))
	return one(out, o.Raw, t)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + strings.TrimSpace(reason)
}

// localTime prints a time for people. Machines read -o json.
func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05.000")
}
