package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

func newDLQImport() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Put exported messages back among the parked ones",
		Long: `Puts the messages of a file that "orderflow dlq export" wrote back among the parked messages of their groups, in the order of
the file; - is stdin. All of them are dead there: nothing runs until "orderflow dlq replay". Their keys are held, so later
messages of these keys wait behind them. Edits come along.

A message that its group knows, as parked, done or discarded, is not taken: the same file may be imported any number of
times. Each line says what became of it. A file with a bad line is refused as a whole, and so is one that does not end with the
line that counts the others: it was cut off. --partial takes what is left of such a file, or of one that somebody has filtered.

Without --yes it only prints what it would do. Exit code 6: a message was refused for another reason than that it is known.`,
		Example: "  orderflow dlq import letters.jsonl --dry-run\n  orderflow dlq import letters.jsonl --yes",
		Args:    cobra.ExactArgs(1),
		RunE:    importLetters,
	}
	cmd.Flags().Bool("dry-run", false, "only print what would be done, even with --yes")
	cmd.Flags().Bool("partial", false, "take a file that is not the whole of what was exported")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

// letter is a line of an export, and what became of it.
type letter struct {
	line   int
	name   string // where it was exported
	parked inbox.Parked
	err    error // nil: it is taken
}

// letterResult is a letter as JSON shows it.
type letterResult struct {
	Line      int    `json:"line"`
	ID        string `json:"id"` // where it was exported
	Group     string `json:"group"`
	MessageID string `json:"message_id"`
	Key       string `json:"key"`
	Taken     bool   `json:"taken"`
	Reason    string `json:"reason,omitempty"`
}

func importLetters(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	letters, err := openLetters(cmd, args[0])
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	// The plan is the import itself, taken back: what is wrong with a line shows before anything is done.
	if _, err := importAll(cmd, url, letters, false); err != nil {
		return err
	}
	yes, _ := cmd.Flags().GetBool("yes")
	dry, _ := cmd.Flags().GetBool("dry-run")
	if yes = yes && !dry; yes {
		if taken, err := importAll(cmd, url, letters, true); err != nil {
			cmd.PrintErrf("%d of %d messages were imported; the same command goes on with the rest\n", taken, len(letters))
			return partial(taken, err)
		}
	}
	return reportImport(cmd, out, letters, yes)
}

func reportImport(cmd *cobra.Command, out *output, letters []*letter, done bool) error {
	var docs []letterResult
	taken, refused := 0, 0
	t := &table{header: []string{"LINE", "WAS", "TYPE", "KEY", "RESULT"}, empty: "the file is empty"}
	for _, l := range letters {
		p := l.parked
		doc := letterResult{Line: l.line, ID: l.name, Group: p.Group, MessageID: p.EventID.String(), Key: p.Key, Taken: l.err == nil}
		result := cell{"taken", "good"}
		switch {
		case l.err == nil:
			taken++
		case errors.Is(l.err, inbox.ErrKnown):
			doc.Reason = l.err.Error()
			result = cell{"not taken: " + doc.Reason, "dim"}
		default:
			refused++
			doc.Reason = l.err.Error()
			result = cell{"refused: " + doc.Reason, "bad"}
		}
		docs = append(docs, doc)
		t.add(l.line, l.name, p.Type, p.Key, result)
	}
	if err := list(out, docs, t); err != nil {
		return err
	}
	if done {
		cmd.PrintErrf("%d of %d messages were imported, dead\n", taken, len(letters))
	} else {
		cmd.PrintErrf("%d of %d messages would be imported, dead; --yes does it\n", taken, len(letters))
	}
	if refused > 0 {
		return fail(exitPartial, "", "%d messages were refused", refused)
	}
	return nil
}

// errRollback takes a planned import back.
var errRollback = errors.New("only planned")

// importAll imports the letters one by one, for good if commit says so, and notes in each what became of it.
func importAll(cmd *cobra.Command, url string, letters []*letter, commit bool) (taken int, err error) {
	show, worked := newProgress(cmd.ErrOrStderr()), 0
	defer show.end()
	seen := map[string]int{}
	byGroup := map[string][]*letter{}
	for _, l := range letters {
		byGroup[l.parked.Group] = append(byGroup[l.parked.Group], l)
	}
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
			for _, l := range byGroup[group] {
				id := group + "/" + l.parked.EventID.String()
				if first, again := seen[id]; again {
					l.err = fmt.Errorf("%w: it is on line %d too", inbox.ErrKnown, first)
				} else if l.err, err = importOne(cmd.Context(), pool, l.parked, commit); err != nil {
					return fmt.Errorf("line %d: %w", l.line, err)
				}
				seen[id] = l.line
				if l.err == nil {
					taken++
				}
				worked++
				show.at(worked, len(letters), "looked at")
			}
			return nil
		})
		if err != nil {
			return taken, err
		}
	}
	return taken, nil
}

// importOne returns why the message is not taken; err is of the database, or of a message that contradicts itself.
func importOne(ctx context.Context, pool *pgxpool.Pool, p inbox.Parked, commit bool) (why, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := inbox.ImportParked(ctx, tx, p, operator()); err != nil || commit {
			return err
		}
		return errRollback
	})
	switch {
	case errors.Is(err, errRollback):
		return nil, nil
	case errors.Is(err, inbox.ErrKnown), errors.Is(err, inbox.ErrConflict), errors.Is(err, inbox.ErrTooOld):
		return err, nil
	}
	return nil, err
}

func openLetters(cmd *cobra.Command, name string) ([]*letter, error) {
	partial, _ := cmd.Flags().GetBool("partial")
	if name == "-" {
		return readLetters(cmd.InOrStdin(), "stdin", partial)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, usage("", "%w", err)
	}
	defer f.Close()
	return readLetters(f, name, partial)
}

// readLetters reads whole exports, one behind another, or says what is wrong with them. partial takes parts of them as well.
func readLetters(r io.Reader, name string, partial bool) ([]*letter, error) {
	var letters []*letter
	in, sum, whole, counted := bufio.NewReader(r), sha256.New(), partial, 0
	for line := 1; ; line++ {
		text, err := in.ReadBytes('\n')
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if end, is := readEnd(text); is {
			if whole = partial || end == (endDoc{letterVersion, len(letters) - counted, hex.EncodeToString(sum.Sum(nil))}); !whole {
				return nil, usage("nothing was imported; export it again, or take it as it is with --partial",
					"%s, line %d: it counts %d messages, and other ones than the %d before it: the file was changed", name, line, end.Messages, len(letters)-counted)
			}
			counted = len(letters)
			sum.Reset()
		} else if len(bytes.TrimSpace(text)) > 0 {
			l, bad := readLetter(text)
			if bad != nil {
				return nil, usage("nothing was imported", "%s, line %d: %w", name, line, bad)
			}
			l.line, whole = line, partial
			letters = append(letters, l)
			sum.Write(text)
		}
		if last && !whole {
			return nil, usage("nothing was imported; export it again, or take what is there with --partial",
				"%s has no last line that counts the others: it was cut off", name)
		}
		if last {
			return letters, nil
		}
	}
}

// readEnd reads the last line of an export, and reports whether text is one.
func readEnd(text []byte) (end endDoc, is bool) {
	err := json.Unmarshal(text, &end)
	return end, err == nil && end.SHA256 != ""
}

func readLetter(text []byte) (*letter, error) {
	var head struct{ Version *int }
	err := json.Unmarshal(text, &head)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		if strings.HasPrefix(syntax.Error(), "unexpected end") {
			return nil, errors.New("the line is cut off")
		}
		return nil, fmt.Errorf("no JSON document of `orderflow dlq export`: %w", err)
	}
	switch {
	case err != nil || head.Version == nil:
		return nil, errors.New("no document of `orderflow dlq export`: it has no version")
	case *head.Version != letterVersion:
		return nil, fmt.Errorf("version %d; this program reads version %d", *head.Version, letterVersion)
	}
	var doc letterDoc
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if schemaOf(doc.Group) == "" {
		return nil, fmt.Errorf("unknown consumer group %q", doc.Group)
	}
	if doc.Topic == "" || doc.Key == "" || doc.RecordTime.IsZero() || doc.ParkedAt.IsZero() {
		return nil, errors.New("topic, key, record_time or parked_at is missing")
	}
	p, err := doc.parked()
	return &letter{name: doc.ID, parked: p}, err
}
