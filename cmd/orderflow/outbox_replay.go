package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/outbox"
)

func newOutboxReplay() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Publish again what was published and is still in the ring",
		Long: `Makes the relay publish messages again, with the same ids and in the same order, before anything new: for when a topic has
lost its end. Consumers drop those they have. The ring keeps messages for more than an hour; what has left it cannot be
published again. Who asked is kept.

Times are those at which the messages were written: 2006-01-02T15:04:05Z, or how long ago, such as 90m. Without --yes it only
prints what it would do.`,
		Example: "  orderflow outbox replay --since 15m --topic orders --dry-run\n  orderflow outbox replay --since 2026-01-02T15:00:00Z --until 2026-01-02T15:20:00Z --yes --wait",
		Args:    cobra.NoArgs,
		RunE:    replayOutboxes,
	}
	cmd.Flags().String("since", "", "the oldest message to publish again (required)")
	cmd.Flags().String("until", "", "only messages written before this")
	cmd.Flags().String("key", "", "only messages with this key")
	cmd.Flags().String("relay", "relay", "the relay that publishes them again, by name")
	cmd.Flags().Bool("dry-run", false, "only print what would be done, even with --yes")
	cmd.Flags().Bool("wait", false, "wait until they are published")
	addTopicFlag(cmd)
	addYesFlag(cmd)
	addOutboxFlags(cmd)
	return cmd
}

// replayDoc is what a replay does to one outbox.
type replayDoc struct {
	Schema    string     `json:"schema"`
	Relay     string     `json:"relay"`
	Messages  int64      `json:"messages"`
	RingSince *time.Time `json:"ring_since"` // null: the ring is empty
	Left      bool       `json:"left"`       // messages that were asked for may have left the ring
}

func replayFromFlags(cmd *cobra.Command) (outbox.ReplayOptions, error) {
	opts := outbox.ReplayOptions{Relay: stringFlag(cmd, "relay"), Topic: stringFlag(cmd, "topic"), Key: stringFlag(cmd, "key"), By: operator()}
	if stringFlag(cmd, "since") == "" {
		return opts, usage("such as --since 15m", "--since is required")
	}
	var err error
	if opts.Since, err = pointInTime(cmd, "since"); err != nil {
		return opts, err
	}
	if opts.Until, err = pointInTime(cmd, "until"); err != nil {
		return opts, err
	}
	if !opts.Until.IsZero() && !opts.Until.After(opts.Since) {
		return opts, usage("", "--until must be after --since")
	}
	return opts, nil
}

// pointInTime reads a flag that is a time, or how long ago it was.
func pointInTime(cmd *cobra.Command, flag string) (time.Time, error) {
	text := stringFlag(cmd, flag)
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usage("write 2006-01-02T15:04:05Z, or how long ago: 90m", "--%s %q is no time", flag, text)
	}
	return at, nil
}

func replayOutboxes(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	opts, err := replayFromFlags(cmd)
	if err != nil {
		return err
	}
	return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
		docs, err := planOutboxReplay(cmd.Context(), pool, schemas, opts)
		if err != nil {
			return err
		}
		t := &table{header: []string{"SCHEMA", "RELAY", "MESSAGES", "RING BEGINS", "NOTE"}}
		total := int64(0)
		for _, d := range docs {
			total += d.Messages
			begins, note := "-", cell{}
			if d.RingSince != nil {
				begins = localTime(*d.RingSince)
			}
			if d.Left {
				note = cell{"older messages have left the ring", "warn"}
			}
			t.add(d.Schema, d.Relay, d.Messages, begins, note)
		}
		if err := list(out, docs, t); err != nil {
			return err
		}
		if total == 0 {
			return nil
		}
		yes, _ := cmd.Flags().GetBool("yes")
		if dry, _ := cmd.Flags().GetBool("dry-run"); dry || !yes {
			cmd.PrintErrf("%d messages would be published again; --yes does it\n", total)
			return nil
		}
		return orderReplays(cmd, pool, docs, opts)
	})
}

func planOutboxReplay(ctx context.Context, pool *pgxpool.Pool, schemas []string, opts outbox.ReplayOptions) ([]replayDoc, error) {
	var docs []replayDoc
	for _, schema := range schemas {
		plan, err := outbox.PlanReplay(ctx, pool, schema, opts)
		if errors.Is(err, outbox.ErrUnknownRelay) && len(schemas) > 1 {
			continue // a name that publishes from some of the outboxes
		}
		if err != nil {
			return nil, outboxError(err)
		}
		doc := replayDoc{Schema: schema, Relay: opts.Relay, Messages: plan.Messages, Left: plan.Left}
		if !plan.RingSince.IsZero() {
			doc.RingSince = &plan.RingSince
		}
		docs = append(docs, doc)
	}
	if len(docs) == 0 {
		return nil, outboxError(fmt.Errorf("plan replay by relay %q: %w", opts.Relay, outbox.ErrUnknownRelay))
	}
	return docs, nil
}

// orderReplays orders what is planned and, with --wait, waits for it.
func orderReplays(cmd *cobra.Command, pool *pgxpool.Pool, docs []replayDoc, opts outbox.ReplayOptions) error {
	numbers := map[string]int64{}
	for _, d := range docs {
		if d.Messages == 0 {
			continue
		}
		number, err := outbox.Replay(cmd.Context(), pool, d.Schema, opts)
		if err != nil {
			return partial(len(numbers), outboxError(err))
		}
		numbers[d.Schema] = number
		cmd.PrintErrf("%s: relay %s will publish %d messages again\n", d.Schema, d.Relay, d.Messages)
	}
	if wait, _ := cmd.Flags().GetBool("wait"); !wait {
		return nil
	}
	for _, d := range docs {
		if number, ordered := numbers[d.Schema]; ordered {
			if err := awaitReplay(cmd, pool, d, number); err != nil {
				return err
			}
		}
	}
	return nil
}

func awaitReplay(cmd *cobra.Command, pool *pgxpool.Pool, d replayDoc, number int64) error {
	show := isTerminal(cmd.ErrOrStderr())
	for {
		messages, done, err := outbox.ReplayDone(cmd.Context(), pool, d.Schema, number)
		if err != nil {
			return err
		}
		if done {
			cmd.PrintErrf("%s: %d messages were published again\n", d.Schema, messages)
			return nil
		}
		if show {
			cmd.PrintErrf("\r%s: %d of %d \x1b[K\r", d.Schema, messages, d.Messages)
		}
		if !sleep(cmd.Context(), 200*time.Millisecond) {
			cmd.PrintErrf("%s: the relay goes on with it\n", d.Schema)
			return cmd.Context().Err()
		}
	}
}
