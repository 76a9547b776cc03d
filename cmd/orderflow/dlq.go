package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
)

// schemaOf names the schema whose inbox a consumer group keeps its parked messages in, "" for a group that is none of ours. A
// group that rebuilds another has that one's name, a dash, and something more.
func schemaOf(group string) string {
	of, _, _ := strings.Cut(group, "-")
	switch of {
	case event.GroupOrder:
		return "orders"
	case event.GroupEmail, event.GroupWarehouse:
		return of
	}
	return ""
}

func newDLQ() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Inspect and resolve parked messages",
		Long: `A message that a consumer group cannot handle is parked: put aside with its reason, and later messages of its key wait
behind it. A parked message is held (it will be tried again), dead (given up until a person acts) or waiting (behind
another of its key). In group email, where order does not matter, nothing waits behind a dead message.

Messages are named GROUP/NUMBER, such as email/12.`,
	}
	cmd.AddCommand(newDLQList(), newDLQGroups(), newDLQShow(), newDLQEdit(), newDLQReplay(), newDLQRetry(), newDLQDiscard(), newDLQExport(), newDLQImport(), newDLQAudit())
	return cmd
}

// parkedDoc is a parked message as JSON shows it.
type parkedDoc struct {
	ID            string     `json:"id"`
	Group         string     `json:"group"`
	State         string     `json:"state"`
	Class         string     `json:"class,omitempty"`
	Error         string     `json:"error,omitempty"`
	Fingerprint   string     `json:"fingerprint,omitempty"`
	Attempts      int        `json:"attempts"`
	Topic         string     `json:"topic"`
	Partition     int32      `json:"partition"`
	Offset        int64      `json:"offset"`
	Key           string     `json:"key"`
	MessageID     string     `json:"message_id"`
	Type          string     `json:"type"`
	ParkedAt      time.Time  `json:"parked_at"`
	FirstFailedAt *time.Time `json:"first_failed_at,omitempty"`
	LastFailedAt  *time.Time `json:"last_failed_at,omitempty"`
	NextTryAt     *time.Time `json:"next_try_at,omitempty"`
}

func newParkedDoc(p inbox.Parked) parkedDoc {
	return parkedDoc{
		ID: parkedName(p), Group: p.Group, State: p.State, Class: p.Class, Error: p.Error, Fingerprint: p.Fingerprint, Attempts: p.Attempts,
		Topic: p.Topic, Partition: p.Partition, Offset: p.Offset, Key: p.Key, MessageID: p.EventID.String(), Type: p.Type,
		ParkedAt: p.ParkedAt, FirstFailedAt: optionalTime(p.FirstFailedAt), LastFailedAt: optionalTime(p.LastFailedAt), NextTryAt: optionalTime(p.NextTryAt),
	}
}

func parkedName(p inbox.Parked) string { return p.Group + "/" + strconv.FormatInt(p.ID, 10) }

func addParkedFilter(cmd *cobra.Command) {
	cmd.Flags().String("group", "", "only this consumer group: order, email or warehouse, or one that has rebuilt them, such as email-rebuild (default: the first three)")
	cmd.Flags().String("key", "", "only messages with this key (the user's id)")
	cmd.Flags().String("type", "", "only messages of this type, such as order.placed.v1")
	cmd.Flags().String("class", "", "only failures of this class, such as undecodable")
	cmd.Flags().String("fingerprint", "", "only failures with this fingerprint (orderflow dlq groups)")
}

// parkedFilter is what the flags of [addParkedFilter] select of one group.
func parkedFilter(cmd *cobra.Command, group, state string) inbox.Filter {
	return inbox.Filter{
		Group: group, Key: stringFlag(cmd, "key"), Type: stringFlag(cmd, "type"), Class: stringFlag(cmd, "class"),
		Fingerprint: stringFlag(cmd, "fingerprint"), State: state,
	}
}

// filtered reports whether a flag of [addParkedFilter] selects something.
func filtered(cmd *cobra.Command) bool {
	return slices.ContainsFunc([]string{"group", "key", "type", "class", "fingerprint"}, func(flag string) bool { return stringFlag(cmd, flag) != "" })
}

func addStateFlag(cmd *cobra.Command, state string) {
	cmd.Flags().String("state", state, "only messages in this state: dead, held or waiting")
}

func stateFromFlag(cmd *cobra.Command) (string, error) {
	state := stringFlag(cmd, "state")
	if state != "" && !slices.Contains([]string{inbox.StateDead, inbox.StateHeld, inbox.StateWaiting}, state) {
		return "", usage("use dead, held or waiting", "unknown state %q", state)
	}
	return state, nil
}

func newDLQList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List parked messages",
		Example: `  orderflow dlq list
  orderflow dlq list --group email --state dead -o jsonl`,
		Args: cobra.NoArgs,
		RunE: listParked,
	}
	addParkedFilter(cmd)
	addStateFlag(cmd, "")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func listParked(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	state, err := stateFromFlag(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	found, err := findParked(cmd, url, state)
	if err != nil {
		return err
	}
	return printParked(out, found)
}

// findParked returns the parked messages of all groups that the flags select.
func findParked(cmd *cobra.Command, url, state string) (found []inbox.Parked, err error) {
	err = eachGroup(cmd, url, func(pool *pgxpool.Pool, group string) error {
		filter := parkedFilter(cmd, group, state)
		for {
			page, err := inbox.ListParked(cmd.Context(), pool, filter)
			if err != nil || len(page) == 0 {
				return err
			}
			found = append(found, page...)
			filter.AfterID = page[len(page)-1].ID
		}
	})
	return found, err
}

// eachGroup calls f with the database of each consumer group that --group selects.
func eachGroup(cmd *cobra.Command, url string, f func(pool *pgxpool.Pool, group string) error) error {
	groups, err := chosenGroups(cmd)
	if err != nil {
		return err
	}
	for _, group := range groups {
		if err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error { return f(pool, group) }); err != nil {
			return err
		}
	}
	return nil
}

func chosenGroups(cmd *cobra.Command) ([]string, error) {
	group := stringFlag(cmd, "group")
	if group == "" {
		return event.Groups(), nil
	}
	if schemaOf(group) == "" {
		return nil, usage("use "+strings.Join(event.Groups(), ", "), "unknown consumer group %q", group)
	}
	return []string{group}, nil
}

func withGroup(ctx context.Context, url, group string, f func(*pgxpool.Pool) error) error {
	pool, err := openSchema(ctx, url, schemaOf(group))
	if err != nil {
		return err
	}
	defer pool.Close()
	return ownerError(f(pool))
}

func printParked(out *output, found []inbox.Parked) error {
	var docs []parkedDoc
	t := &table{header: []string{"ID", "STATE", "CLASS", "TRIES", "TYPE", "KEY", "PARKED", "ERROR"}, empty: "nothing is parked"}
	for _, p := range found {
		docs = append(docs, newParkedDoc(p))
		t.add(parkedName(p), parkedState(p.State), p.Class, p.Attempts, p.Type, p.Key, localTime(p.ParkedAt), firstLine(p.Error, 80))
	}
	return list(out, docs, t)
}

func parkedState(state string) cell {
	if state == inbox.StateDead {
		return cell{state, "bad"}
	}
	return cell{state, "warn"}
}

// firstLine shortens text for a table.
func firstLine(s string, most int) string {
	s, _, _ = strings.Cut(s, "\n")
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}

func loadParked(cmd *cobra.Command, name string) (p inbox.Parked, err error) {
	group, id, err := parseParkedName(name)
	if err != nil {
		return p, err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return p, err
	}
	err = withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
		p, err = inbox.ShowParked(cmd.Context(), pool, id)
		return err
	})
	return p, parkedError(err, name)
}

func parseParkedName(name string) (group string, id int64, err error) {
	group, number, _ := strings.Cut(name, "/")
	id, err = strconv.ParseInt(number, 10, 64)
	if err != nil || schemaOf(group) == "" {
		return "", 0, usage("`orderflow dlq list` shows the names", "%q is not the name of a parked message, such as email/12", name)
	}
	return group, id, nil
}

func parkedError(err error, name string) error {
	switch {
	case errors.Is(err, inbox.ErrNotFound):
		return fail(exitNotFound, "`orderflow dlq list` shows what is parked now", "there is no parked message %s", name)
	case errors.Is(err, inbox.ErrChanged):
		return fail(exitConflict, "look at it again: `orderflow dlq show "+name+"`", "%s has changed since it was loaded", name)
	}
	return err
}
