package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/outbox"
)

func newOutbox() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "outbox",
		Short: "Inspect the outboxes and decide about what they hold",
		Long: `Each service writes its messages to the outbox of its own schema, and relays publish them from there. A message that Kafka
refuses for good parks its key: later messages of the key wait behind it, all others flow.

Published messages stay in the ring of the outbox for more than an hour, and can be published again from there.`,
	}
	cmd.AddCommand(newOutboxStatus(), newOutboxDoctor(), newOutboxParked(), newOutboxRelease(), newOutboxDiscard(), newOutboxReplay(), newOutboxForget())
	return cmd
}

func addOutboxFlags(cmd *cobra.Command) {
	cmd.Flags().StringSlice("schema", nil, "only the outboxes of these schemas (default: every schema that has one)")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
}

// withOutboxes calls f with the database and the schemas of the outboxes that the flags name.
func withOutboxes(cmd *cobra.Command, f func(pool *pgxpool.Pool, schemas []string) error) error {
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	schemas, err := chosenOutboxes(cmd, pool)
	if err != nil {
		return err
	}
	err = f(pool, schemas)
	if _, decided := errors.AsType[*failure](err); decided {
		return err
	}
	return ownerError(err)
}

func chosenOutboxes(cmd *cobra.Command, pool *pgxpool.Pool) ([]string, error) {
	named, err := cmd.Flags().GetStringSlice("schema")
	if err != nil {
		return nil, err
	}
	rows, _ := pool.Query(cmd.Context(), `
		SELECT n.nspname
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = 'outbox_lease' AND c.relkind = 'r'
		ORDER BY n.nspname`) // CollectRows reports the error
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	if len(there) == 0 {
		return nil, fail(exitFailure, "run `orderflow migrate`", "the database has no outbox")
	}
	for _, schema := range named {
		if !slices.Contains(there, schema) {
			return nil, fail(exitNotFound, "there are those of "+strings.Join(there, ", "), "there is no outbox in schema %q", schema)
		}
	}
	if len(named) > 0 {
		return named, nil
	}
	return there, nil
}

// outboxError gives the errors of package outbox the exit codes that scripts branch on.
func outboxError(err error) error {
	switch {
	case errors.Is(err, outbox.ErrNotParked):
		return fail(exitConflict, "`orderflow outbox parked` shows what is parked now", "%w", err)
	case errors.Is(err, outbox.ErrInUse):
		return fail(exitConflict, "stop the relay; release or discard what is parked", "%w", err)
	case errors.Is(err, outbox.ErrUnknownRelay):
		return fail(exitNotFound, "`orderflow outbox status` shows the relays", "%w", err)
	}
	return err
}

func newOutboxForget() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget RELAY",
		Short: "Give a relay name up, so that the ring waits for it no longer",
		Long: `Removes a relay name and how far it is. Stop its processes first. What it has not published is not published under this
name any more; a relay that is started under it later begins with what the ring then holds.

A name that leads, or that has parked messages, is not forgotten. Without --yes it only prints what it would do.`,
		Example: "  orderflow outbox forget search --schema orders --yes",
		Args:    cobra.ExactArgs(1),
		RunE:    forgetRelay,
	}
	addYesFlag(cmd)
	addOutboxFlags(cmd)
	return cmd
}

func forgetRelay(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
		var docs []relayDoc
		for _, schema := range schemas {
			status, err := outbox.Inspect(cmd.Context(), pool, schema)
			if err != nil {
				return err
			}
			for _, r := range status.Relays {
				if r.Name == args[0] {
					docs = append(docs, newRelayDoc(schema, r))
				}
			}
		}
		if len(docs) == 0 {
			return fail(exitNotFound, "`orderflow outbox status` shows the relays", "there is no relay %q", args[0])
		}
		if err := list(out, docs, relayTable(docs)); err != nil {
			return err
		}
		if yes, _ := cmd.Flags().GetBool("yes"); !yes {
			cmd.PrintErrf("this name would be forgotten in %d outboxes; --yes does it\n", len(docs))
			return nil
		}
		for i, doc := range docs {
			if err := outbox.Forget(cmd.Context(), pool, doc.Schema, doc.Relay, operator()); err != nil {
				cmd.PrintErrf("the name was forgotten in %d of %d outboxes\n", i, len(docs))
				return partial(i, outboxError(err))
			}
		}
		cmd.PrintErrf("the name is forgotten in %d outboxes\n", len(docs))
		return nil
	})
}
