package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/outbox"
)

// outboxDoc is an outbox as JSON shows it. Times are in seconds.
type outboxDoc struct {
	Schema            string          `json:"schema"`
	Relays            []relayDoc      `json:"relays"`
	Ring              []leafDoc       `json:"ring"` // the current leaf first
	RingHeadroom      float64         `json:"ring_headroom_seconds"`
	OldestTransaction *transactionDoc `json:"oldest_transaction"`
}

type relayDoc struct {
	Schema         string     `json:"schema"`
	Relay          string     `json:"relay"`
	Leader         string     `json:"leader"` // "" while none leads
	Epoch          int64      `json:"epoch"`
	LeaseLeft      float64    `json:"lease_left_seconds"`
	Backlog        int64      `json:"backlog"`
	BacklogIsMore  bool       `json:"backlog_is_more"` // it is only counted so far
	Oldest         float64    `json:"oldest_unpublished_seconds"`
	ParkedKeys     int64      `json:"parked_keys"`
	ParkedMessages int64      `json:"parked_messages"`
	LastPublished  *time.Time `json:"last_published"`
	Violations     int64      `json:"order_violations"`
}

type leafDoc struct {
	Slot     int      `json:"slot"`
	Bytes    int64    `json:"bytes"`
	Oldest   float64  `json:"oldest_seconds"`
	WaitsFor []string `json:"waits_for"`
}

type transactionDoc struct {
	PID   int     `json:"pid"`
	User  string  `json:"user"`
	State string  `json:"state"`
	Age   float64 `json:"age_seconds"`
	Query string  `json:"query"`
}

func newOutboxDoc(schema string, s outbox.Status) outboxDoc {
	doc := outboxDoc{Schema: schema, Relays: []relayDoc{}, RingHeadroom: s.Headroom.Seconds()}
	for _, r := range s.Relays {
		doc.Relays = append(doc.Relays, newRelayDoc(schema, r))
	}
	for _, leaf := range s.Ring {
		doc.Ring = append(doc.Ring, leafDoc{leaf.Slot, leaf.Bytes, leaf.Oldest.Seconds(), append([]string{}, leaf.WaitsFor...)})
	}
	if t := s.OldestTransaction; t.PID != 0 {
		doc.OldestTransaction = &transactionDoc{t.PID, t.User, t.State, t.Age.Seconds(), t.Query}
	}
	return doc
}

func newRelayDoc(schema string, r outbox.RelayStatus) relayDoc {
	doc := relayDoc{
		Schema: schema, Relay: r.Name, Leader: r.Leader, Epoch: r.Epoch, LeaseLeft: r.LeaseLeft.Seconds(),
		Backlog: r.Backlog, BacklogIsMore: r.Backlog == outbox.BacklogLimit, Oldest: r.Oldest.Seconds(),
		ParkedKeys: r.ParkedKeys, ParkedMessages: r.ParkedMessages, Violations: r.Violations,
	}
	if !r.LastPublished.IsZero() {
		doc.LastPublished = &r.LastPublished
	}
	return doc
}

func newOutboxStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who publishes, what waits, and how full the rings are",
		Long: `Shows each relay by name with its leader, its epoch, which grows with every change of leader, what is left of the lease,
what waits to be published, which keys are parked, and when a message was published last; then each ring: how many of its
leaves are filled, when writers come to one that is still filled, and which relays the others wait for.`,
		Example: "  orderflow outbox status --watch\n  orderflow outbox status --schema orders -o json",
		Args:    cobra.NoArgs,
		RunE:    outboxStatus,
	}
	cmd.Flags().BoolP("watch", "w", false, "show it again every second, until Ctrl-C")
	addOutboxFlags(cmd)
	return cmd
}

func outboxStatus(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	watch, _ := cmd.Flags().GetBool("watch")
	if watch && out.format == "json" {
		return usage("use -o jsonl: a line for each outbox, again and again", "--watch does not end, so it makes no JSON document")
	}
	ctx := cmd.Context()
	return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
		for {
			docs, err := inspectOutboxes(ctx, pool, schemas)
			if err == nil {
				err = showOutboxes(out, docs, watch)
			}
			if err != nil && !(watch && ctx.Err() != nil) || !watch {
				return err
			}
			if !sleep(ctx, time.Second) {
				return nil
			}
		}
	})
}

// showOutboxes prints docs, in place of what a watcher has seen before.
func showOutboxes(out *output, docs []outboxDoc, watch bool) error {
	if watch && isTerminal(out.w) {
		fmt.Fprint(out.w, "\x1b[H\x1b[2J")
	}
	if err := printOutboxes(out, docs); err != nil {
		return err
	}
	if watch && out.format == "table" {
		fmt.Fprintln(out.w)
	}
	return nil
}

func inspectOutboxes(ctx context.Context, pool *pgxpool.Pool, schemas []string) ([]outboxDoc, error) {
	var docs []outboxDoc
	for _, schema := range schemas {
		status, err := outbox.Inspect(ctx, pool, schema)
		if err != nil {
			return nil, err
		}
		docs = append(docs, newOutboxDoc(schema, status))
	}
	return docs, nil
}

func printOutboxes(out *output, docs []outboxDoc) error {
	if out.format != "table" {
		return list(out, docs, nil)
	}
	var relays []relayDoc
	rings := &table{header: []string{"SCHEMA", "LEAVES", "SIZE", "HEADROOM", "WAIT FOR"}}
	for _, doc := range docs {
		relays = append(relays, doc.Relays...)
		rings.add(ringRow(doc)...)
	}
	if err := out.table(relayTable(relays)); err != nil {
		return err
	}
	fmt.Fprintln(out.w)
	if err := out.table(rings); err != nil {
		return err
	}
	if t := docs[0].OldestTransaction; t != nil { // of the database, whichever outbox it is about
		fmt.Fprintf(out.w, "\noldest open transaction: %v, process %d of %s, %s: %s\n",
			shortSeconds(t.Age), t.PID, printable(t.User), t.State, printable(firstLine(t.Query, 80)))
	}
	return nil
}

func relayTable(docs []relayDoc) *table {
	t := &table{header: []string{"SCHEMA", "RELAY", "LEADER", "EPOCH", "LEASE", "BACKLOG", "OLDEST", "PARKED", "LAST PUBLISHED"}, empty: "no relays"}
	for _, d := range docs {
		leader, lease := cell{d.Leader, "good"}, shortSeconds(d.LeaseLeft)
		if d.Leader == "" {
			leader, lease = cell{"nobody", "bad"}, "-"
		}
		backlog := strconv.FormatInt(d.Backlog, 10)
		if d.BacklogIsMore {
			backlog += "+"
		}
		oldest := "-"
		if d.Backlog > 0 {
			oldest = shortSeconds(d.Oldest)
		}
		parked := cell{text: "-"}
		if d.ParkedKeys > 0 {
			parked = cell{fmt.Sprintf("%d keys, %d messages", d.ParkedKeys, d.ParkedMessages), "warn"}
		}
		last := "-"
		if d.LastPublished != nil {
			last = localTime(*d.LastPublished)
		}
		t.add(d.Schema, d.Relay, leader, d.Epoch, lease, backlog, oldest, parked, last)
	}
	return t
}

// ringRow sums up a ring: the current leaf always waits for somebody, the others only while a relay is behind.
func ringRow(doc outboxDoc) []any {
	filled, bytes := 0, int64(0)
	var waits []string
	for i, leaf := range doc.Ring {
		if leaf.Bytes > 0 {
			filled++
			bytes += leaf.Bytes
		}
		if i > 0 && len(leaf.WaitsFor) > 0 {
			waits = append(waits, fmt.Sprintf("%d: %s", leaf.Slot, strings.Join(leaf.WaitsFor, ", ")))
		}
	}
	return []any{
		doc.Schema, fmt.Sprintf("%d of %d", filled, len(doc.Ring)), fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)),
		shortSeconds(doc.RingHeadroom), cell{cmp.Or(strings.Join(waits, "; "), "-"), "dim"},
	}
}

// shortSeconds shows a duration in seconds with as many digits as matter.
func shortSeconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
