package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/saga"
)

func newSaga() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "saga",
		Short: "Inspect the sagas of orders, and settle those that need a person",
		Long: `The saga of an order reserves its stock, charges it and completes it, or takes back what it did. Its id is the order's.
Two states need a person: in_doubt, when nobody can tell any more whether the charge happened, and stuck, when a step or its
compensation fails however often it is tried. Such a saga holds its own user's next orders and nobody else's.`,
	}
	cmd.AddCommand(newSagaList(), newSagaShow(), newSagaRetry(), newSagaResolve(), newSagaCompensate(), newSagaSkip())
	return cmd
}

// sagaDoc is a saga as JSON shows it.
type sagaDoc struct {
	ID            uuid.UUID  `json:"id"`
	User          string     `json:"user_id"`
	Definition    string     `json:"definition"`
	Version       int        `json:"version"`
	State         saga.State `json:"state"`
	Step          string     `json:"step,omitempty"`
	Attempt       int        `json:"attempt"`
	FailureKind   string     `json:"failure_kind,omitempty"`
	FailureStep   string     `json:"failure_step,omitempty"`
	FailureReason string     `json:"failure_reason,omitempty"`
	Error         string     `json:"error,omitempty"`
	Rev           int64      `json:"rev"`
	CreatedAt     time.Time  `json:"created_at"`
	UpdatedAt     time.Time  `json:"updated_at"`
	DeadlineAt    *time.Time `json:"deadline_at,omitempty"`
	FinishedAt    *time.Time `json:"finished_at,omitempty"`
}

func newSagaDoc(in saga.Instance) sagaDoc {
	return sagaDoc{
		ID: in.ID, User: in.Lane, Definition: in.Definition, Version: in.Version, State: in.State, Step: in.Step, Attempt: in.Attempt,
		FailureKind: string(in.Failure.Kind), FailureStep: in.Failure.Step, FailureReason: in.Failure.Reason, Error: in.Error,
		Rev: in.Rev, CreatedAt: in.CreatedAt, UpdatedAt: in.UpdatedAt,
		DeadlineAt: optionalTime(in.DeadlineAt), FinishedAt: optionalTime(in.FinishedAt),
	}
}

// sagaStates are those that a saga can be listed by.
var sagaStates = []saga.State{
	saga.Waiting, saga.Running, saga.Compensating, saga.InDoubt, saga.StuckState, saga.Completed, saga.Compensated,
}

func newSagaList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List sagas, oldest first; by default those that have not ended",
		Example: `  orderflow saga list --state in_doubt
  orderflow saga list --user user-0007 --all`,
		Args: cobra.NoArgs,
		RunE: listSagas,
	}
	cmd.Flags().String("state", "", "only sagas in this state, such as in_doubt, stuck or compensating")
	cmd.Flags().String("user", "", "only this user's")
	cmd.Flags().Bool("all", false, "those that have ended too")
	cmd.Flags().Int("limit", 100, "most sagas to list")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func listSagas(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	filter := saga.Filter{State: saga.State(stringFlag(cmd, "state")), Lane: stringFlag(cmd, "user")}
	if filter.State != "" && !slices.Contains(sagaStates, filter.State) {
		return usage("use "+joinStates(), "unknown state %q", filter.State)
	}
	filter.Finished, _ = cmd.Flags().GetBool("all")
	if filter.Limit, _ = cmd.Flags().GetInt("limit"); filter.Limit < 1 {
		return usage("", "--limit must be at least 1, is %d", filter.Limit)
	}
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	found, err := saga.List(cmd.Context(), pool, filter)
	if err != nil {
		return ownerError(err)
	}
	docs := make([]sagaDoc, len(found))
	t := &table{header: []string{"ORDER", "USER", "STATE", "STEP", "TRIES", "CHANGED", "ERROR"}, empty: "no such sagas"}
	for i, in := range found {
		docs[i] = newSagaDoc(in)
		t.add(in.ID, in.Lane, sagaState(in.State), in.Step, in.Attempt, localTime(in.UpdatedAt), firstLine(in.Error, 60))
	}
	if len(found) == filter.Limit {
		cmd.PrintErrf("the first %d; --limit shows more\n", filter.Limit)
	}
	return list(out, docs, t)
}

func joinStates() string {
	var names []string
	for _, state := range sagaStates {
		names = append(names, string(state))
	}
	return strings.Join(names, ", ")
}

func sagaState(state saga.State) cell {
	switch state {
	case saga.InDoubt, saga.StuckState:
		return cell{string(state), "bad"}
	case saga.Compensating, saga.Compensated:
		return cell{string(state), "warn"}
	case saga.Completed:
		return cell{string(state), "good"}
	default:
		return cell{text: string(state)}
	}
}

// historyDoc is a saga with what it did.
type historyDoc struct {
	sagaDoc
	Journal []entryDoc `json:"journal"`
	Audit   []auditDoc `json:"audit"`
}

type entryDoc struct {
	Step      string          `json:"step"`
	Undo      bool            `json:"undo"`
	State     saga.EntryState `json:"state"`
	Attempt   int             `json:"attempt"`
	Key       string          `json:"idempotency_key,omitempty"`
	IntentAt  time.Time       `json:"intent_at"`
	OutcomeAt *time.Time      `json:"outcome_at,omitempty"`
	Error     string          `json:"error,omitempty"`
}

type auditDoc struct {
	At     time.Time  `json:"at"`
	Action string     `json:"action"`
	By     string     `json:"by"`
	Reason string     `json:"reason"`
	Was    saga.State `json:"was"`
}

func newSagaShow() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show ORDER",
		Short: "Show one saga: where it stands, every step it did or undid, and who intervened",
		Example: `  orderflow saga show 0199c3f2-5a10-7cc0-8f3e-4a1b2c3d4e5f
  orderflow saga show 0199c3f2-5a10-7cc0-8f3e-4a1b2c3d4e5f -o json`,
		Args: cobra.ExactArgs(1),
		RunE: showSaga,
	}
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func showSaga(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	id, err := sagaID(args[0])
	if err != nil {
		return err
	}
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	h, err := saga.Load(cmd.Context(), pool, id)
	if err != nil {
		return sagaError(err)
	}
	return printHistory(out, h)
}

func printHistory(out *output, h *saga.History) error {
	in := h.Instance
	doc := historyDoc{sagaDoc: newSagaDoc(in), Journal: []entryDoc{}, Audit: []auditDoc{}}
	t := &table{}
	t.add("saga", in.ID)
	t.add("user", in.Lane)
	t.add("state", sagaState(in.State))
	if in.Step != "" {
		t.add("step", in.Step)
	}
	if in.Failure.Kind != "" {
		t.add("failure", string(in.Failure.Kind)+" at "+in.Failure.Step+": "+in.Failure.Reason)
	}
	if in.Error != "" {
		t.add("error", in.Error)
	}
	t.add("revision", in.Rev)
	t.add("changed", localTime(in.UpdatedAt))
	for _, e := range h.Journal {
		doc.Journal = append(doc.Journal, entryDoc{
			e.Step, e.Undo, e.State, e.Attempt, e.Key, e.IntentAt, optionalTime(e.OutcomeAt), e.Error,
		})
		did := "do"
		if e.Undo {
			did = "undo"
		}
		what := did + " " + e.Step + ": " + string(e.State)
		if e.Key != "" {
			what += ", key " + e.Key
		}
		if e.Error != "" {
			what += ", " + e.Error
		}
		t.add(localTime(e.IntentAt), what)
	}
	for _, a := range h.Audit {
		doc.Audit = append(doc.Audit, auditDoc(a))
		t.add(localTime(a.At), a.By+" chose "+a.Action+" while it was "+string(a.Was)+": "+a.Reason)
	}
	return one(out, doc, t)
}

func sagaID(arg string) (uuid.UUID, error) {
	id, err := uuid.Parse(arg)
	if err != nil {
		return id, usage("`orderflow saga list` shows the ids", "%q is not the id of an order", arg)
	}
	return id, nil
}

func sagaError(err error) error {
	switch {
	case errors.Is(err, saga.ErrNotFound):
		return fail(exitNotFound, "`orderflow saga list --all` shows them", "%w", err)
	case errors.Is(err, saga.ErrConflict):
		return fail(exitConflict, "`orderflow saga show` tells where it stands now", "%w", err)
	}
	return ownerError(err)
}
