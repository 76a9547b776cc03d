package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/orderflow-dev/orderflow/inbox"
)

func newDLQEdit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "edit GROUP/NUMBER",
		Short: "Replace the payload of a dead or held message",
		Long: `Replaces the payload of a dead or held message by that of a file, of stdin (--file -), or by what you make of it in
$VISUAL or $EDITOR. Its id, key and headers stay. It prints what changes.

A dead message stays dead: "orderflow dlq replay" runs it as edited. A held one is tried again at once. The original is kept
("orderflow dlq show --original"), however often the message is edited, with the reason and who gave it.

With --file it only prints what would change, unless --yes is given; after the editor it asks.`,
		Example: `  orderflow dlq edit order/12 --reason 'currency was missing'
  orderflow dlq show order/12 -o json | jq -r .payload | sed s/EURO/EUR/ | orderflow dlq edit order/12 --file - --reason 'wrong currency' --yes`,
		Args: cobra.ExactArgs(1),
		RunE: editParked,
	}
	cmd.Flags().String("file", "", "the new payload; - is stdin (default: open an editor)")
	cmd.Flags().String("reason", "", "why (required)")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	return cmd
}

func editParked(cmd *cobra.Command, args []string) error {
	reason, file := stringFlag(cmd, "reason"), stringFlag(cmd, "file")
	if reason == "" {
		return usage("it is kept with the original payload", "--reason is required")
	}
	stdin, ok := cmd.InOrStdin().(*os.File)
	if file == "" && !(ok && term.IsTerminal(int(stdin.Fd()))) {
		return usage("--file F, or --file - for stdin", "there is no terminal to edit in")
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	p, err := loadParked(cmd, args[0])
	if err != nil {
		return err
	}
	if p.State == inbox.StateWaiting {
		return fail(exitConflict, "only dead and held messages can be edited", "%s waits behind another message of its key", args[0])
	}
	payload, err := newPayload(cmd, file, p.Payload)
	if err != nil {
		return err
	}
	if bytes.Equal(payload, p.Payload) && p.Payload != nil {
		cmd.PrintErrln("nothing changed")
		return nil
	}
	out := &output{w: cmd.OutOrStdout(), format: "table", colour: wantsColour(cmd.OutOrStdout())}
	if _, err := io.WriteString(out.w, out.diffText(readable(p.Payload), readable(payload))); err != nil {
		return err
	}
	yes, _ := cmd.Flags().GetBool("yes")
	if !yes && file == "" {
		yes = confirmed(cmd, "replace the payload of "+args[0]+"?")
	}
	if !yes {
		cmd.PrintErrf("the payload of %s would be replaced; --yes does it\n", args[0])
		return nil
	}
	err = withGroup(cmd.Context(), url, p.Group, func(pool *pgxpool.Pool) error {
		return inbox.EditParked(cmd.Context(), pool, p, payload, reason, operator())
	})
	if err != nil {
		return parkedError(err, args[0])
	}
	next := "it is tried again now"
	if p.State == inbox.StateDead {
		next = "`orderflow dlq replay " + args[0] + " --yes` runs it"
	}
	cmd.PrintErrf("the payload of %s is replaced; %s\n", args[0], next)
	return nil
}

// newPayload reads the payload that is to replace old.
func newPayload(cmd *cobra.Command, file string, old []byte) ([]byte, error) {
	switch file {
	case "":
		return inEditor(cmd.Context(), cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR")), old)
	case "-":
		return io.ReadAll(cmd.InOrStdin())
	}
	payload, err := os.ReadFile(file)
	if err != nil {
		return nil, usage("", "%w", err)
	}
	return payload, nil
}

// inEditor has a person change payload. JSON is laid out for it, and compact again afterwards if it was before.
func inEditor(ctx context.Context, editor string, payload []byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "orderflow-edit-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // a payload is nobody else's to read
	shown, isCompact := payload, false
	var pretty, compact bytes.Buffer
	if json.Indent(&pretty, payload, "", "  ") == nil && json.Compact(&compact, payload) == nil && bytes.Equal(compact.Bytes(), payload) {
		shown, isCompact = append(pretty.Bytes(), '\n'), true
	}
	path := filepath.Join(dir, "payload.json")
	if err := os.WriteFile(path, shown, 0o600); err != nil {
		return nil, err
	}
	words := strings.Fields(editor) // "code --wait"
	if len(words) == 0 {
		words = []string{"vi"}
	}
	run := exec.CommandContext(ctx, words[0], append(words[1:], path)...) //nolint:gosec // the person's own choice of editor
	run.Stdin, run.Stdout, run.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := run.Run(); err != nil {
		return nil, fmt.Errorf("edit with %s: %w", editor, err)
	}
	edited, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if compact.Reset(); isCompact && json.Compact(&compact, edited) == nil {
		return compact.Bytes(), nil
	}
	return edited, nil
}

// confirmed asks the person at the terminal.
func confirmed(cmd *cobra.Command, question string) bool {
	cmd.PrintErrf("%s [y/N] ", question)
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // nothing is a no
	return strings.EqualFold(strings.TrimSpace(answer), "y")
}
