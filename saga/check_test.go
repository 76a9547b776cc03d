package saga_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

func TestNewEngineRejectsDefinitionsThatCouldLeaveSomethingHalfDone(t *testing.T) {
	t.Parallel()
	do := func(context.Context, pgx.Tx, *saga.Instance) error { return nil }
	all := func(context.Context, pgx.Tx, []*saga.Instance) ([]error, error) { return nil, nil }
	p := newProvider()
	local := func(name string) *saga.LocalStep { return saga.Local(name, do) }
	remote := func(name string) *saga.RemoteStep { return saga.Remote(name, p.charge).Query(p.find).Undo(p.refund) }
	for _, tc := range []struct {
		sentence string
		def      *saga.Definition
		want     string // empty: accepted
	}{
		{"steps with a pivot in the middle", saga.Define("d", 1, local("a").Undo(do), remote("b"), local("c").Pivot(), local("d")), ""},
		{"no pivot: all can be undone", saga.Define("d", 1, local("a"), remote("b")), ""},
		{"a remote pivot", saga.Define("d", 1, local("a"), saga.Remote("b", p.charge).Query(p.find).Pivot()), ""},
		{"no name", saga.Define("", 1, local("a")), "no name"},
		{"version 0", saga.Define("d", 0, local("a")), "version must be 1"},
		{"no steps", saga.Define("d", 1), "no steps"},
		{"a nil step", saga.Define("d", 1, nil), "has no action"},
		{"a step without an action", saga.Define("d", 1, saga.Local("a", nil)), "has no action"},
		{"a name that a key cannot hold", saga.Define("d", 1, local("Zahlung ü")), "must match"},
		{"one name twice", saga.Define("d", 1, local("a"), local("a")), "there twice"},
		{"two names that make one key", saga.Define("d", 1, local("a b"), local("a-b")), "there twice"},
		{"two pivots", saga.Define("d", 1, local("a").Pivot(), local("b").Pivot()), "second pivot"},
		{"a pivot with an undo", saga.Define("d", 1, local("a").Undo(do).Pivot()), "is the pivot and has an Undo"},
		{"an undo after the pivot", saga.Define("d", 1, local("a").Pivot(), local("b").Undo(do)), "only goes forward"},
		{"a call nobody can ask about", saga.Define("d", 1, saga.Remote("a", p.charge).Undo(p.refund)), "no Query"},
		{"a call before the pivot that cannot be undone", saga.Define("d", 1, saga.Remote("a", p.charge).Query(p.find), local("b").Pivot()), "no Undo"},
		{"both kinds of undo", saga.Define("d", 1, local("a").Undo(do).UndoBatch(all), local("b").Pivot()), "both Undo and UndoBatch"},
		{"RecordUndo without Undo", saga.Define("d", 1, saga.Remote("a", p.charge).Query(p.find).RecordUndo(do).Pivot()), "RecordUndo but no Undo"},
		{"a call without a limit", saga.Define("d", 1, remote("a").Timeout(0)), "Timeout above zero"},
		{"a window shorter than a call", saga.Define("d", 1, remote("a").KeyWindow(time.Second)), "KeyWindow longer"},
		{"a deadline with nothing before the pivot", saga.Define("d", 1, local("a").Pivot()).Deadline(time.Hour), "nothing to undo"},
		{"a negative deadline", saga.Define("d", 1, local("a")).Deadline(-1), "negative deadline"},
	} {
		_, err := saga.NewEngine(nil, []*saga.Definition{tc.def}, saga.EngineOptions{})
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: NewEngine = %v, want no error", tc.sentence, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: NewEngine = %v, want %q", tc.sentence, err, tc.want)
		}
	}
}

func TestNewEngineRejectsOptionsThatCannotWork(t *testing.T) {
	t.Parallel()
	def := saga.Define("d", 1, saga.Local("a", confirm))
	for _, tc := range []struct {
		sentence string
		defs     []*saga.Definition
		opts     saga.EngineOptions
		want     string
	}{
		{"no definitions", nil, saga.EngineOptions{}, "no definitions"},
		{"one definition twice", []*saga.Definition{def, def}, saga.EngineOptions{}, "there twice"},
		{"negative batch", []*saga.Definition{def}, saga.EngineOptions{BatchSize: -1}, "BatchSize"},
		{"MaxPoll below MinPoll", []*saga.Definition{def}, saga.EngineOptions{MinPoll: time.Hour}, "MaxPoll"},
	} {
		_, err := saga.NewEngine(nil, tc.defs, tc.opts)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: NewEngine = %v, want %q", tc.sentence, err, tc.want)
		}
	}
}
