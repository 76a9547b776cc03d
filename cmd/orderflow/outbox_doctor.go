package main

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/outbox"
)

type findingDoc struct {
	Schema string `json:"schema"`
	outbox.Finding
}

func newOutboxDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps the outboxes from doing what they promise",
		Long: `Looks at each outbox, its relays and its server, and says for everything that is not as it must be why that matters and
what to do. It changes nothing. A warning means that a promise or space is at risk; a failure that a promise is broken or
that messages do not leave, and makes the exit code 7.

docs/operations.md has a line for each finding.`,
		Example: "  orderflow outbox doctor\n  orderflow outbox doctor --schema orders --max-transaction 1m -o json",
		Args:    cobra.NoArgs,
		RunE:    outboxDoctor,
	}
	cmd.Flags().Duration("max-age", 30*time.Second, "how long a message may wait to be published")
	cmd.Flags().Duration("max-transaction", 10*time.Minute, "how long a transaction may be open, or prepared and not ended")
	addOutboxFlags(cmd)
	return cmd
}

func outboxDoctor(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	var opts outbox.ExamineOptions
	opts.MaxAge, _ = cmd.Flags().GetDuration("max-age")
	opts.MaxTransaction, _ = cmd.Flags().GetDuration("max-transaction")
	var check config.Check
	check.Positive("max-age", opts.MaxAge)
	check.Positive("max-transaction", opts.MaxTransaction)
	if err := invalid(cmd, check.Err()); err != nil {
		return err
	}
	return withOutboxes(cmd, func(pool *pgxpool.Pool, schemas []string) error {
		var docs []findingDoc
		for _, schema := range schemas {
			findings, err := outbox.Examine(cmd.Context(), pool, schema, opts)
			if err != nil {
				return err
			}
			for _, f := range findings {
				docs = append(docs, findingDoc{schema, f})
			}
		}
		if err := list(out, docs, findingTable(docs)); err != nil {
			return err
		}
		return verdict(docs)
	})
}

// findingTable shows what is well in one line each, and below the rest why it matters and what to do.
func findingTable(docs []findingDoc) *table {
	styles := map[string]string{outbox.OK: "good", outbox.Warn: "warn", outbox.Fail: "bad"}
	t := &table{header: []string{"LEVEL", "SCHEMA", "CHECK", "FINDING"}}
	for _, d := range docs {
		t.add(cell{d.Level, styles[d.Level]}, d.Schema, d.Check, d.What)
		if d.Level != outbox.OK {
			t.add("", "", cell{"why", "dim"}, d.Why)
			t.add("", "", cell{"do", "dim"}, cell{d.Next, "bold"})
		}
	}
	return t
}

func verdict(docs []findingDoc) error {
	failed := 0
	for _, d := range docs {
		if d.Level == outbox.Fail {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return fail(exitCheckFailed, "see docs/operations.md, \"The outbox\"", "%d of %d findings are failures", failed, len(docs))
}
