package main

import (
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/outbox"
)

// parkedKeyDoc is a parked key, or one message of it, as JSON shows it.
type parkedKeyDoc struct {
	Schema    string    `json:"schema"`
	Relay     string    `json:"relay"`
	Topic     string    `json:"topic"`
	Key       string    `json:"key"`
	MessageID uuid.UUID `json:"message_id"`
	Type      string    `json:"type"`
	Error     string    `json:"error,omitempty"`
	Attempts  int       `json:"attempts"`
	ParkedAt  time.Time `json:"parked_at"`
	Behind    int64     `json:"behind"`
	Released  bool      `json:"released"`

	messages int64
	alone    bool // the message, not its key
}

func newParkedKeyDoc(schema string, k outbox.ParkedKey) parkedKeyDoc {
	return parkedKeyDoc{
		Schema: schema, Relay: k.Relay, Topic: k.Topic, Key: k.Key, MessageID: k.MessageID, Type: k.Type, Error: k.Error,
		Attempts: k.Attempts, ParkedAt: k.ParkedAt, Behind: k.Messages - 1, Released: k.Released, messages: k.Messages,
	}
}

func newOutboxParked() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "parked",
		Short:   "List the keys that relays have parked, and why",
		Long:    `Lists each parked key with the message that Kafka refused, the reason, since when, and how many messages wait behind it.`,
		Example: "  orderflow outbox parked\n  orderflow outbox parked --schema orders -o jsonl",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
				docs, err := parkedKeys(cmd, pool, schemas)
				if err != nil {
					return err
				}
				return printParkedKeys(out, docs)
			})
		},
	}
	addTopicFlag(cmd)
	addOutboxFlags(cmd)
	return cmd
}

func addTopicFlag(cmd *cobra.Command) {
	cmd.Flags().String("topic", "", "only messages for this topic")
}

// parkedKeys returns what is parked in schemas, for the topic that the flag names.
func parkedKeys(cmd *cobra.Command, pool *pgxpool.Pool, schemas []string) ([]parkedKeyDoc, error) {
	topic := stringFlag(cmd, "topic")
	var docs []parkedKeyDoc
	for _, schema := range schemas {
		keys, err := outbox.ListParkedKeys(cmd.Context(), pool, schema)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if topic == "" || k.Topic == topic {
				docs = append(docs, newParkedKeyDoc(schema, k))
			}
		}
	}
	return docs, nil
}

func printParkedKeys(out *output, docs []parkedKeyDoc) error {
	t := &table{header: []string{"SCHEMA", "RELAY", "TOPIC", "KEY", "MESSAGE", "TYPE", "TRIES", "SINCE", "BEHIND", "REASON"}, empty: "nothing is parked"}
	for _, d := range docs {
		reason := cell{firstLine(d.Error, 80), "bad"}
		if d.Released {
			reason = cell{"released", "good"}
		}
		t.add(d.Schema, d.Relay, d.Topic, d.Key, d.MessageID, d.Type, d.Attempts, localTime(d.ParkedAt), d.Behind, reason)
	}
	return list(out, docs, t)
}

func newOutboxRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release KEY...",
		Short: "Publish the parked messages of a key after all",
		Long: `Makes the relay publish the parked messages of a key, in their order, within a second. Mend first what made Kafka refuse
one: if it refuses it again, the key stays parked. Who released it is kept.

Without --yes it only prints what it would do.`,
		Example: "  orderflow outbox release user-12 --yes\n  orderflow outbox release --all --topic shipments --yes",
		RunE:    releaseKeys,
	}
	cmd.Flags().Bool("all", false, "release every parked key")
	addTopicFlag(cmd)
	addYesFlag(cmd)
	addOutboxFlags(cmd)
	return cmd
}

func releaseKeys(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	all, _ := cmd.Flags().GetBool("all")
	switch {
	case len(args) == 0 && !all:
		return usage("`orderflow outbox parked` shows them; --all selects all", "name the keys to release")
	case len(args) > 0 && all:
		return usage("", "name the keys or select --all, not both")
	}
	return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
		plan, err := parkedKeys(cmd, pool, schemas)
		if err != nil {
			return err
		}
		if !all {
			if plan, err = ofKeys(plan, args); err != nil {
				return err
			}
		}
		return settle(cmd, out, plan, "released", func(d parkedKeyDoc) (int, error) {
			return outbox.Release(cmd.Context(), pool, d.Schema, d.Topic, d.Key, operator())
		})
	})
}

// ofKeys returns those of docs that are of one of keys, each of which must be there.
func ofKeys(docs []parkedKeyDoc, keys []string) ([]parkedKeyDoc, error) {
	var chosen []parkedKeyDoc
	for _, key := range keys {
		before := len(chosen)
		for _, d := range docs {
			if d.Key == key {
				chosen = append(chosen, d)
			}
		}
		if len(chosen) == before {
			return nil, notParked(key)
		}
	}
	return chosen, nil
}

func notParked(what string) error {
	return fail(exitNotFound, "`orderflow outbox parked` shows what is parked now", "nothing is parked as %q", what)
}

func newOutboxDiscard() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discard KEY|MESSAGE...",
		Short: "Give parked messages up for good",
		Long: `Gives up a parked message, named by its id, or all parked messages of a key: they are never published. What waited behind
a message that is given up is published within a second. The reason, who gave it and the messages are kept. There is no way
back.

Without --yes it only prints what it would do.`,
		Example: "  orderflow outbox discard 0199c0de-0000-7000-8000-000000000012 --reason 'too large, sent by hand' --yes",
		Args:    cobra.MinimumNArgs(1),
		RunE:    discardFromOutbox,
	}
	cmd.Flags().String("reason", "", "why (required)")
	addTopicFlag(cmd)
	addYesFlag(cmd)
	addOutboxFlags(cmd)
	return cmd
}

func discardFromOutbox(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	reason := stringFlag(cmd, "reason")
	if reason == "" {
		return usage("it is kept with the message", "--reason is required")
	}
	return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
		plan, err := planDiscard(cmd, pool, schemas, args)
		if err != nil {
			return err
		}
		return settle(cmd, out, plan, "discarded", func(d parkedKeyDoc) (int, error) {
			if d.alone {
				return 1, outbox.Discard(cmd.Context(), pool, d.Schema, d.MessageID, operator(), reason)
			}
			return outbox.DiscardKey(cmd.Context(), pool, d.Schema, d.Topic, d.Key, operator(), reason)
		})
	})
}

// planDiscard finds what each of names means: the message of that id, or else the key.
func planDiscard(cmd *cobra.Command, pool *pgxpool.Pool, schemas, names []string) ([]parkedKeyDoc, error) {
	keys, err := parkedKeys(cmd, pool, schemas)
	if err != nil {
		return nil, err
	}
	var plan []parkedKeyDoc
	for _, name := range names {
		found, err := parkedMessage(cmd, pool, schemas, name)
		if err == nil && len(found) == 0 {
			found, err = ofKeys(keys, []string{name})
		}
		if err != nil {
			return nil, err
		}
		plan = append(plan, found...)
	}
	return plan, nil
}

// parkedMessage returns the message of an id, once for each relay name that has parked it; nothing if there is none.
func parkedMessage(cmd *cobra.Command, pool *pgxpool.Pool, schemas []string, name string) ([]parkedKeyDoc, error) {
	id, err := uuid.Parse(name)
	if err != nil {
		return nil, nil //nolint:nilerr // a name that is no id is a key
	}
	var found []parkedKeyDoc
	for _, schema := range schemas {
		parked, err := outbox.ListParked(cmd.Context(), pool, schema)
		if err != nil {
			return nil, err
		}
		for _, p := range parked {
			if p.ID == id {
				doc := newParkedKeyDoc(schema, outbox.ParkedKey{
					Relay: p.Relay, Topic: p.Topic, Key: p.Key, MessageID: p.ID, Type: p.Type, Error: p.Error, Attempts: p.Attempts,
					ParkedAt: p.ParkedAt, Messages: 1, Released: p.Released,
				})
				doc.alone = true
				found = append(found, doc)
			}
		}
	}
	return found, nil
}

// settle prints the plan and, with --yes, does it. What several relay names have parked is settled for all of them at once.
func settle(cmd *cobra.Command, out *output, plan []parkedKeyDoc, done string, do func(parkedKeyDoc) (int, error)) error {
	if err := printParkedKeys(out, plan); err != nil || len(plan) == 0 {
		return err
	}
	planned := int64(0)
	for _, d := range plan {
		planned += d.messages
	}
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		cmd.PrintErrf("%d messages would be %s; --yes does it\n", planned, done)
		return nil
	}
	type target struct {
		schema, topic, key string
		message            uuid.UUID
	}
	settled := map[target]bool{}
	total := 0
	for _, d := range plan {
		t := target{d.Schema, d.Topic, d.Key, uuid.Nil}
		if d.alone {
			t.message = d.MessageID
		}
		if settled[t] {
			continue
		}
		settled[t] = true
		n, err := do(d)
		if err != nil {
			cmd.PrintErrf("%d of %d messages were %s\n", total, planned, done)
			return partial(total, outboxError(err))
		}
		total += n
	}
	cmd.PrintErrf("%d messages were %s\n", total, done)
	return nil
}
