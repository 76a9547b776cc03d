package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/saga"
)

// maxRetried bounds what one command reads and retries.
const maxRetried = 10_000

func newSagaRetry() *cobra.Command {
	cmd := newIntervention("retry", "Try a stuck saga's step again, or ask again about one in doubt",
		`Sends a stuck saga on from where it stands, with its tries counted anew, and asks the provider again about one that is in
doubt. Do it after the cause is mended.

With --state, and --step, it is done to all such sagas, 10,000 at most. Without --yes it only counts them, by step and error.
Each is retried as it was when it was listed, in a transaction of its own; one that has moved since is left alone and counted.`,
		`  orderflow saga retry 0199… --reason 'provider is back' --yes
  orderflow saga retry --state stuck --step 'charge payment' --reason 'provider is back'`, always(saga.Retry))
	cmd.Use = "retry [ORDER]"
	cmd.Args = cobra.MaximumNArgs(1)
	cmd.Flags().Lookup("rev").Usage = "with ORDER: the revision that was looked at (default: the one that is there now)"
	cmd.Flags().String("state", "", "all sagas in this state: stuck or in_doubt")
	cmd.Flags().String("step", "", "with --state: only those that stand at this step, or its compensation")
	retryOne := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		state := saga.State(stringFlag(cmd, "state"))
		step := cmd.Flags().Changed("step")
		switch {
		case len(args) == 1 && state == "" && !step:
			return retryOne(cmd, args)
		case len(args) == 1 || state != saga.StuckState && state != saga.InDoubt:
			return usage("`orderflow saga list --state stuck` shows them", "name one ORDER, or all with --state stuck or --state in_doubt")
		case cmd.Flags().Changed("rev"):
			return usage("", "--rev goes with one ORDER")
		case step && stringFlag(cmd, "step") == "":
			return usage("was a shell variable empty?", "--step is empty")
		}
		return retryAll(cmd, state)
	}
	return cmd
}

// retryGroup is a line of the plan.
type retryGroup struct {
	Step  string `json:"step"`
	Error string `json:"error,omitempty"` // without what is in one of them only
	Sagas int    `json:"sagas"`
}

func retryAll(cmd *cobra.Command, state saga.State) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	op := saga.Operator{By: operator(), Reason: stringFlag(cmd, "reason")}
	if op.Reason == "" {
		return usage("it is kept with each saga", "--reason is required")
	}
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	found, err := saga.List(cmd.Context(), pool, saga.Filter{State: state, Limit: maxRetried})
	if err != nil {
		return ownerError(err)
	}
	if len(found) == maxRetried {
		cmd.PrintErrf("only the oldest %d sagas in state %s are looked at; run it again for the others\n", maxRetried, state)
	}
	if step := stringFlag(cmd, "step"); step != "" {
		found = slices.DeleteFunc(found, func(in saga.Instance) bool { return in.Step != step })
	}
	if err := printRetryPlan(out, found); err != nil || len(found) == 0 {
		return err
	}
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		cmd.PrintErrf("%d sagas would be retried; --yes does it\n", len(found))
		return nil
	}
	bar := newProgress(cmd.ErrOrStderr())
	retried, moved, err := retryListed(cmd.Context(), pool, found, op, bar)
	bar.say("%d sagas are retried, an engine goes on from here; %d had moved and were left alone", retried, moved)
	return err
}

// numbered is a word with a digit: an id, an address, or a status.
var numbered = regexp.MustCompile(`\S*\d\S*`)

// leaveOutID makes errors alike that differ in ids and addresses only. A status is shorter than they are.
func leaveOutID(word string) string {
	if len(word) < 12 {
		return word
	}
	return "…"
}

func printRetryPlan(out *output, found []saga.Instance) error {
	count := map[retryGroup]int{}
	for _, in := range found {
		count[retryGroup{Step: in.Step, Error: firstLine(numbered.ReplaceAllStringFunc(in.Error, leaveOutID), 100)}]++
	}
	var groups []retryGroup
	for g, n := range count {
		g.Sagas = n
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b retryGroup) int {
		return cmp.Or(b.Sagas-a.Sagas, cmp.Compare(a.Step, b.Step), cmp.Compare(a.Error, b.Error))
	})
	t := &table{header: []string{"SAGAS", "STEP", "ERROR"}, empty: "no such sagas"}
	for _, g := range groups {
		t.add(g.Sagas, g.Step, g.Error)
	}
	return list(out, groups, t)
}

// retryListed retries each saga if it is still as it was listed.
func retryListed(ctx context.Context, pool *pgxpool.Pool, listed []saga.Instance, op saga.Operator, bar *progress) (retried, moved int, err error) {
	for _, in := range listed {
		op.Rev = in.Rev
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return saga.Retry(ctx, tx, in.ID, op) })
		switch {
		case err == nil:
			retried++
		case errors.Is(err, saga.ErrConflict), errors.Is(err, saga.ErrNotFound):
			moved++
		default:
			return retried, moved, fmt.Errorf("retry saga %s: %w", in.ID, ownerError(err))
		}
		bar.at(retried+moved, len(listed), "retried")
	}
	return retried, moved, nil
}
