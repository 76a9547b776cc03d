package main

import (
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

// parkedAuditDoc is an entry of the audit as JSON shows it.
type parkedAuditDoc struct {
	At        time.Time `json:"at"`
	Action    string    `json:"action"`
	ID        string    `json:"id,omitempty"` // GROUP/NUMBER; "" when the message was never parked
	Group     string    `json:"group"`
	Topic     string    `json:"topic"`
	Key       string    `json:"key"`
	MessageID string    `json:"message_id"`
	By        string    `json:"by"`
	Reason    string    `json:"reason,omitempty"`
}

func newDLQAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who replayed, discarded, edited or imported messages, and why",
		Long: `Shows what was done to messages instead of handling them, the oldest first: by people, and by handlers that discarded a
message themselves. --since is a time, 2006-01-02T15:04:05Z, or how long ago, such as 24h.`,
		Example: "  orderflow dlq audit --since 24h\n  orderflow dlq audit --group order -o jsonl",
		Args:    cobra.NoArgs,
		RunE:    showAudit,
	}
	cmd.Flags().String("group", "", "only this consumer group: order, email or warehouse")
	cmd.Flags().String("since", "", "only what was done since then")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func showAudit(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	since, err := pointInTime(cmd, "since")
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	var entries []inbox.AuditEntry
	err = eachGroup(cmd, url, func(pool *pgxpool.Pool, group string) error {
		filter := inbox.AuditFilter{Group: group, Since: since}
		for {
			page, err := inbox.ListAudit(cmd.Context(), pool, filter)
			if err != nil || len(page) == 0 {
				return err
			}
			entries = append(entries, page...)
			filter.AfterID = page[len(page)-1].ID
		}
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(entries, func(a, b inbox.AuditEntry) int { return a.At.Compare(b.At) })
	var docs []parkedAuditDoc
	t := &table{header: []string{"AT", "ACTION", "ID", "KEY", "MESSAGE", "BY", "REASON"}, empty: "nothing was done"}
	for _, e := range entries {
		doc := parkedAuditDoc{At: e.At, Action: e.Action, Group: e.Group, Topic: e.Topic, Key: e.Key, MessageID: e.EventID.String(), By: e.By, Reason: e.Reason}
		name := e.Group + "/-"
		if e.ParkedID != 0 {
			doc.ID = e.Group + "/" + strconv.FormatInt(e.ParkedID, 10)
			name = doc.ID
		}
		docs = append(docs, doc)
		t.add(localTime(e.At), e.Action, name, e.Key, doc.MessageID, e.By, firstLine(e.Reason, 80))
	}
	return list(out, docs, t)
}
