package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

// shownDoc is a parked message with its content. JSON has no bytes, so what is not text is given in base64 instead, and null,
// which Kafka tells from empty, as null.
type shownDoc struct {
	parkedDoc
	Edits         []editDoc       `json:"edits,omitempty"`
	Headers       []headerDoc     `json:"headers"`
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`
}

// editDoc says that the payload was replaced.
type editDoc struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

type headerDoc struct {
	Key         string          `json:"key"`
	Value       json.RawMessage `json:"value,omitempty"`
	ValueBase64 []byte          `json:"value_base64,omitempty"`
}

// bytesDoc returns b as a JSON string or null, or, when it is not text, as bytes that are to be encoded.
func bytesDoc(b []byte) (text json.RawMessage, encoded []byte) {
	if b == nil {
		return json.RawMessage("null"), nil
	}
	if !utf8.Valid(b) {
		return nil, b
	}
	quoted, err := json.Marshal(string(b))
	if err != nil {
		return nil, b // a string always encodes
	}
	return quoted, nil
}

func newDLQShow() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show GROUP/NUMBER",
		Short:   "Show one parked message with its headers and payload",
		Long:    `Shows a parked message with its headers, its payload and who edited it. --original shows the payload before all edits.`,
		Example: "  orderflow dlq show email/12\n  orderflow dlq show order/7 --original -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			p, err := loadParked(cmd, args[0])
			if err != nil {
				return err
			}
			if original, _ := cmd.Flags().GetBool("original"); original {
				p.Payload = p.Original()
			}
			return showParked(out, p)
		},
	}
	cmd.Flags().Bool("original", false, "show the payload that the record had, before it was edited")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func showParked(out *output, p inbox.Parked) error {
	doc := shownDoc{parkedDoc: newParkedDoc(p), Headers: []headerDoc{}}
	doc.Payload, doc.PayloadBase64 = bytesDoc(p.Payload)
	t := &table{}
	row := func(name string, value any) { t.add(cell{name, "dim"}, value) }
	row("id", doc.ID)
	row("state", parkedState(p.State))
	if p.Class != "" {
		row("failure", p.Class+": "+p.Error)
		row("fingerprint", p.Fingerprint)
	}
	row("tries", p.Attempts)
	row("type", p.Type)
	row("key", p.Key)
	row("message id", doc.MessageID)
	row("record", fmt.Sprintf("%s, partition %d, offset %d", p.Topic, p.Partition, p.Offset))
	row("parked", localTime(p.ParkedAt))
	row("last failed", localTime(p.LastFailedAt))
	row("next try", localTime(p.NextTryAt))
	for _, e := range p.Edits {
		doc.Edits = append(doc.Edits, editDoc{At: e.At, By: e.By, Reason: e.Reason})
		row("edited", fmt.Sprintf("%s by %s: %s", localTime(e.At), e.By, e.Reason))
	}
	for _, h := range p.Headers {
		value, encoded := bytesDoc(h.Value)
		doc.Headers = append(doc.Headers, headerDoc{Key: h.Key, Value: value, ValueBase64: encoded})
		row("header", h.Key+": "+string(h.Value))
	}
	if err := one(out, doc, t); err != nil || out.format != "table" {
		return err
	}
	_, err := fmt.Fprintf(out.w, "\n%s\n", readable(p.Payload))
	return err
}

// readable shows a payload as text when it is some, and as a hex dump otherwise.
func readable(payload []byte) string {
	var pretty bytes.Buffer
	if json.Indent(&pretty, payload, "", "  ") == nil {
		return printable(pretty.String())
	}
	if utf8.Valid(payload) {
		return printable(string(payload))
	}
	return hex.Dump(payload)
}
