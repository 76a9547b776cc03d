package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/cmd/orderflow/dev"
)

// hop is one station of an order's way.
type hop struct {
	At     time.Time `json:"at"`
	Source string    `json:"source"`
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
}

type timelineDoc struct {
	OrderID string `json:"order_id"`
	UserID  string `json:"user_id"`
	Status  string `json:"status"`
	Hops    []hop  `json:"hops"`
}

func newOrdersTimeline() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "timeline ID",
		Short: "Follow one order across every hop",
		Long: `Shows every hop of an order with its time, the time since the order was placed, and the time since the hop before: the
order's row, its messages in outbox and Kafka (partition and offset), the steps of its saga, payment, stock, mail and
shipment.

The api knows the order's own part. The rest is read from Postgres and Kafka, which the running orderflow dev names, or
--database-url and --kafka. Without them a note on stderr says that hops are missing.`,
		Example: "  orderflow orders timeline 0199c0de-0000-7000-8000-000000000000",
		Args:    cobra.ExactArgs(1),
		RunE:    showTimeline,
	}
	addAPIFlags(cmd)
	cmd.Flags().String("database-url", "", "the owner's Postgres URL (default: the running orderflow dev's)")
	cmd.Flags().StringSlice("kafka", nil, "brokers as host:port (default: the running orderflow dev's)")
	addOutputFlag(cmd)
	return cmd
}

func showTimeline(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	client, err := newClient(cmd, 1)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := cmd.Context()
	known, err := client.Timeline(ctx, args[0])
	if err != nil {
		return orderError(err, args[0])
	}
	doc := timelineDoc{OrderID: known.OrderID, UserID: known.UserID, Status: known.Status, Hops: hopsOfAPI(known)}
	more, err := hopsBehind(ctx, cmd, known)
	if err != nil {
		// What the api said is worth showing, and the exit code says that something is missing.
		cmd.PrintErrf("only the api's part is shown: %v\n", err)
	}
	doc.Hops = append(doc.Hops, more...)
	slices.SortStableFunc(doc.Hops, func(a, b hop) int { return a.At.Compare(b.At) })
	if perr := printTimeline(out, doc); perr != nil {
		return perr
	}
	if err != nil {
		return &failure{code: exitPartial, err: fmt.Errorf("the timeline is not complete")}
	}
	return nil
}

func hopsOfAPI(t apiclient.Timeline) []hop {
	var hops []hop
	for _, e := range t.Entries {
		hops = append(hops, hop(e))
	}
	return hops
}

// hopsBehind reads what only Postgres and Kafka know. Without their addresses there is nothing to read.
func hopsBehind(ctx context.Context, cmd *cobra.Command, t apiclient.Timeline) ([]hop, error) {
	database := stringFlag(cmd, "database-url")
	brokers, err := cmd.Flags().GetStringSlice("kafka")
	if err != nil {
		return nil, err
	}
	// Another system's orders are not in this one's database.
	if ready, err := dev.ReadReady(stringFlag(cmd, "data-dir")); err == nil && cmp.Or(stringFlag(cmd, "api"), ready.API) == ready.API {
		database = cmp.Or(database, ready.Postgres)
		if len(brokers) == 0 {
			brokers = strings.Split(ready.Kafka, ",")
		}
	}
	if database == "" || len(brokers) == 0 {
		var unsaid []string
		if database == "" {
			unsaid = append(unsaid, "--database-url")
		}
		if len(brokers) == 0 {
			unsaid = append(unsaid, "--kafka")
		}
		cmd.PrintErrf("not every hop is shown: %s would show more\n", strings.Join(unsaid, " and "))
	}
	id, err := uuid.Parse(t.OrderID)
	if err != nil {
		return nil, fmt.Errorf("read the order's id: %w", err)
	}
	trail := trail{order: id, user: t.UserID, since: earliest(t).Add(-time.Minute), types: map[uuid.UUID]string{}}
	if len(brokers) > 0 {
		if err := trail.readKafka(ctx, brokers); err != nil {
			return trail.hops, err
		}
	}
	if database != "" {
		if err := trail.readDatabase(ctx, database, t); err != nil {
			return trail.hops, err
		}
	}
	return trail.hops, nil
}

func earliest(t apiclient.Timeline) time.Time {
	first := time.Now()
	for _, e := range t.Entries {
		if e.At.Before(first) {
			first = e.At
		}
	}
	return first
}

// trail collects the hops of one order.
type trail struct {
	order uuid.UUID
	user  string
	since time.Time
	hops  []hop
	types map[uuid.UUID]string // of the order's messages, by id
}

func (t *trail) add(at time.Time, source, what, detail string, args ...any) {
	t.hops = append(t.hops, hop{At: at.UTC(), Source: source, What: what, Detail: fmt.Sprintf(detail, args...)})
}

func printTimeline(out *output, doc timelineDoc) error {
	t := &table{header: []string{"TIME", "SINCE START", "STEP", "WHERE", "WHAT", "DETAIL"}}
	for i, h := range doc.Hops {
		before := h.At
		if i > 0 {
			before = doc.Hops[i-1].At
		}
		t.add(h.At.Local().Format("15:04:05.000"), delta(h.At.Sub(doc.Hops[0].At)), cell{delta(h.At.Sub(before)), "dim"}, h.Source, h.What, h.Detail)
	}
	if out.format == "table" {
		head := &table{}
		head.add(cell{"order", "dim"}, doc.OrderID)
		head.add(cell{"user", "dim"}, doc.UserID)
		head.add(cell{"status", "dim"}, statusCell(doc.Status))
		if err := out.table(head); err != nil {
			return err
		}
		fmt.Fprintln(out.w)
	}
	return one(out, doc, t)
}

func delta(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("+%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Minute:
		return fmt.Sprintf("+%.2f s", d.Seconds())
	}
	return "+" + d.Round(time.Second).String()
}
