package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/cmd/orderflow/load"
)

func newOrders() *cobra.Command {
	cmd := &cobra.Command{Use: "orders", Short: "Place, show, list, cancel, refund and follow orders"}
	cmd.AddCommand(newOrdersCreate(), newOrdersGet(), newOrdersList(), newOrdersCancel(), newOrdersRefund(), newOrdersTimeline())
	return cmd
}

// paymentMethods are those that the sandbox knows: package sandbox has them in full.
const paymentMethods = `  pm_ok                   charges
  pm_declined             declines, as does every method not named here
  pm_slow                 charges and answers late
  pm_late                 charges long after the caller gave up, unless it is cancelled before
  pm_lost_answer          charges, and the answer is lost
  pm_timeout_charged      charges, says nothing for long, then 504
  pm_timeout              never charges, says nothing for long, then 504
  pm_error_charged        charges and answers 500
  pm_error_once           answers 500 and charges nothing, once
  pm_webhook_first        charges, and answers after its webhook was taken
  pm_webhook_only         charges, and never answers: only its webhook tells
  pm_webhook_repeated     charges, and sends each webhook three times
  pm_refund_lost_answer   charges; the refund is made, and its answer is lost
  pm_refund_timeout_once  charges; the first refund is not made, and answered late with 504`

func newOrdersCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Place an order",
		Long: `Places an order. When the outcome of the request is unknown it is sent again under the same idempotency key, so there is
at most one order.

With --wait the command returns once the order is completed, shipped or failed. Its exit code is 0 when the order was
completed or shipped, 1 when it failed, and 124 when --timeout was over first.

With the sandbox for a payment provider, --payment-method chooses what it does:
` + paymentMethods,
		Example: `  orderflow orders create --random --wait
  orderflow orders create --user ada --item sku-mug=2 --item sku-pen
  orderflow orders create --random --payment-method pm_declined --wait -o json`,
		Args: cobra.NoArgs,
		RunE: createOrder,
	}
	f := cmd.Flags()
	f.String("user", "", "id of the user who orders")
	f.StringArray("item", nil, "product and quantity as SKU=N, or just SKU for one; repeat for more")
	f.String("currency", "EUR", "ISO 4217 code of the currency to pay in")
	f.String("email", "", "address for the mails (default USER@example.com)")
	f.String("payment-method", "pm_ok", "how to pay; the sandbox knows pm_ok, pm_declined, pm_slow, pm_timeout, pm_lost_answer and more, see above")
	f.Bool("random", false, "make up what the other flags leave open, with products in stock")
	f.String("idempotency-key", "", "key of the request (default: a new one); the same key never makes a second order")
	addWaitFlags(cmd, "wait until the order is completed, shipped or failed")
	addAPIFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

func addWaitFlags(cmd *cobra.Command, what string) {
	cmd.Flags().Bool("wait", false, what)
	cmd.Flags().Duration("timeout", 30*time.Second, "how long to wait")
}

func createOrder(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	client, err := newClient(cmd, 2)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel, err := waitContext(cmd)
	if err != nil {
		return err
	}
	defer cancel()

	o, err := orderFromFlags(ctx, cmd, client)
	if err != nil {
		return err
	}
	placed, err := placeOrder(ctx, cmd, client, o)
	if err != nil {
		return err
	}
	order := placed.Order
	if placed.Replayed {
		cmd.PrintErrln("this key had made the order before")
	}
	if wait, _ := cmd.Flags().GetBool("wait"); wait {
		if order, err = awaitOrder(ctx, client, order); err != nil {
			return err
		}
	}
	if err := printOrder(out, order); err != nil {
		return err
	}
	if order.Terminal() && !order.Succeeded() {
		return fail(exitFailure, "", "order %s ended as %s%s", order.ID, order.Status, because(order.Reason))
	}
	return nil
}

// waitContext bounds the command by --timeout.
func waitContext(cmd *cobra.Command) (context.Context, context.CancelFunc, error) {
	limit, err := cmd.Flags().GetDuration("timeout")
	if err != nil {
		return nil, nil, err
	}
	if limit <= 0 {
		return nil, nil, usage("use a duration such as 30s", "--timeout must be positive, not %v", limit)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), limit)
	return ctx, cancel, nil
}

func orderFromFlags(ctx context.Context, cmd *cobra.Command, client *apiclient.Client) (apiclient.NewOrder, error) {
	f := cmd.Flags()
	random, _ := f.GetBool("random")
	specs, _ := f.GetStringArray("item")
	o := apiclient.NewOrder{
		UserID: stringFlag(cmd, "user"), Currency: stringFlag(cmd, "currency"), Email: stringFlag(cmd, "email"),
		PaymentMethod: stringFlag(cmd, "payment-method"),
	}
	for _, spec := range specs {
		item, err := parseItem(spec)
		if err != nil {
			return o, err
		}
		o.Items = append(o.Items, item)
	}
	if random {
		if err := fillIn(ctx, cmd, client, &o); err != nil {
			return o, err
		}
	}
	if o.UserID == "" || len(o.Items) == 0 {
		return o, usage("or let --random make them up", "--user and at least one --item are required")
	}
	o.Email = cmp.Or(o.Email, mailbox(o.UserID))
	return o, nil
}

// mailbox makes an address from a user id, which may contain characters that an address must not have.
func mailbox(userID string) string {
	local := strings.Trim(strings.Map(func(r rune) rune {
		if r == '@' || r == ':' || r == '.' {
			return '-'
		}
		return r
	}, userID), "-")
	return cmp.Or(local, "user") + "@example.com"
}

// fillIn makes up what o leaves open.
func fillIn(ctx context.Context, cmd *cobra.Command, client *apiclient.Client, o *apiclient.NewOrder) error {
	if o.UserID != "" && len(o.Items) > 0 {
		return nil
	}
	products, err := client.Products(ctx)
	if err != nil {
		return err
	}
	if cmd.Flags().Changed("currency") {
		products = inCurrency(products, o.Currency)
	}
	g, err := load.NewGenerator(rand.Uint64(), 1000, products, load.Mix{}) //nolint:gosec // no secret
	if err != nil {
		return err
	}
	made := g.Next()
	o.UserID = cmp.Or(o.UserID, made.UserID)
	if len(o.Items) == 0 {
		o.Items, o.Currency = made.Items, made.Currency
	}
	return nil
}

func inCurrency(products []apiclient.Product, currency string) []apiclient.Product {
	var in []apiclient.Product
	for _, p := range products {
		if p.Currency == currency {
			in = append(in, p)
		}
	}
	return in
}

func parseItem(spec string) (apiclient.NewItem, error) {
	sku, count, given := strings.Cut(spec, "=")
	n := int64(1)
	if given {
		var err error
		if n, err = strconv.ParseInt(count, 10, 64); err != nil {
			return apiclient.NewItem{}, usage("write --item SKU=N, such as --item sku-mug=2", "%q is not a quantity", count)
		}
	}
	if sku == "" {
		return apiclient.NewItem{}, usage("write --item SKU=N, such as --item sku-mug=2", "--item %q names no product", spec)
	}
	return apiclient.NewItem{SKU: sku, Quantity: n}, nil
}

// placeOrder sends the order until its outcome is known, within reason.
func placeOrder(ctx context.Context, cmd *cobra.Command, client *apiclient.Client, o apiclient.NewOrder) (apiclient.Placed, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return apiclient.Placed{}, err
	}
	key := cmp.Or(stringFlag(cmd, "idempotency-key"), uuid.NewString())
	const tries = 5
	for try := 1; ; try++ {
		placed, err := client.Place(ctx, key, body)
		if err == nil || !apiclient.Unknown(err) || (try == 1 && refused(err)) {
			return placed, err
		}
		pause := 200 * time.Millisecond << try
		var p *apiclient.Problem
		if errors.As(err, &p) {
			pause = max(pause, min(p.RetryAfter, 5*time.Second))
		}
		if try == tries || !sleep(ctx, pause) {
			return placed, &failure{code: exitCode(err, cmd.Context().Err() != nil), err: err, hint: "whether the order was placed is unknown; " +
				"the same command with --idempotency-key " + key + " finds it or places it"}
		}
		cmd.PrintErrf("%v; trying again under the same key\n", err)
	}
}

// awaitOrder waits until the order has come to an end, as far as ctx lets it.
func awaitOrder(ctx context.Context, client *apiclient.Client, o apiclient.Order) (apiclient.Order, error) {
	for {
		seen, err := client.Await(ctx, o.ID, 10*time.Second)
		switch {
		case err == nil:
			o = seen
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return o, fail(exitTimeout, "`orderflow orders timeline "+o.ID+"` shows how far it came; --timeout waits longer", "order %s is still %s", o.ID, o.Status)
		case !apiclient.Unknown(err):
			return o, err
		}
		if o.Terminal() {
			return o, nil
		}
		if err != nil {
			sleep(ctx, 300*time.Millisecond) // the api restarts, or sheds load
		}
	}
}

func newOrdersGet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show one order",
		Long: `Shows one order. With --wait it waits until the order is completed, shipped or failed; the exit code says only whether
the order could be read.`,
		Example: "  orderflow orders get 0199c0de-0000-7000-8000-000000000000 -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withOrder(cmd, args[0], (*apiclient.Client).Order)
		},
	}
	addWaitFlags(cmd, "wait until the order is completed, shipped or failed")
	addAPIFlags(cmd)
	addOutputFlag(cmd)
	return cmd
}

// withOrder calls the api about one order, waits for its end when --wait asks for that, and prints it.
func withOrder(cmd *cobra.Command, id string, call func(*apiclient.Client, context.Context, string) (apiclient.Order, error)) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
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
	o, err := call(client, ctx, id)
	if err != nil {
		return orderError(err, id)
	}
	if wait, _ := cmd.Flags().GetBool("wait"); wait && !o.Terminal() {
		if o, err = awaitOrder(ctx, client, o); err != nil {
			return err
		}
	}
	return printOrder(out, o)
}
