package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

// letterVersion is the version of the lines that export writes and import reads.
const letterVersion = 1

// letterDoc is a parked message with all that belongs to it, a line of an export. Bytes are in base64; null is none.
type letterDoc struct {
	Version int `json:"version"`
	parkedDoc
	Released   bool           `json:"released"` // later messages of its key pass it
	RecordKey  []byte         `json:"record_key"`
	RecordTime time.Time      `json:"record_time"`
	Headers    []letterHeader `json:"headers"`
	Payload    []byte         `json:"payload"`
	Edits      []letterEdit   `json:"edits,omitempty"`
}

// endDoc is the last line of an export. A file without it was cut off, be it between two lines.
type endDoc struct {
	Version  int    `json:"version"`
	Messages int    `json:"messages"`
	SHA256   string `json:"sha256"` // of the lines before it, in hex
}

type letterHeader struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

type letterEdit struct {
	editDoc
	Payload []byte `json:"payload"` // what the edit replaced
}

func newLetterDoc(p inbox.Parked) letterDoc {
	doc := letterDoc{
		Version: letterVersion, parkedDoc: newParkedDoc(p), Released: p.Released, RecordKey: p.RecordKey, RecordTime: p.RecordTime,
		Headers: []letterHeader{}, Payload: p.Payload,
	}
	for _, h := range p.Headers {
		doc.Headers = append(doc.Headers, letterHeader(h))
	}
	for _, e := range p.Edits {
		doc.Edits = append(doc.Edits, letterEdit{editDoc{At: e.At, By: e.By, Reason: e.Reason}, e.Payload})
	}
	return doc
}

// parked is the message that the line was made of.
func (d letterDoc) parked() (inbox.Parked, error) {
	id, err := uuid.Parse(d.MessageID)
	if err != nil || id.Version() != 7 {
		return inbox.Parked{}, errors.New("message_id is no UUIDv7")
	}
	p := inbox.Parked{
		Group: d.Group, Topic: d.Topic, Partition: d.Partition, Offset: d.Offset, Key: d.Key, EventID: id, Type: d.Type, State: d.State,
		Attempts: d.Attempts, Class: d.Class, Error: d.Error, Fingerprint: d.Fingerprint, ParkedAt: d.ParkedAt,
		FirstFailedAt: orZero(d.FirstFailedAt), LastFailedAt: orZero(d.LastFailedAt),
		Released: d.Released, RecordKey: d.RecordKey, RecordTime: d.RecordTime, Payload: d.Payload,
	}
	for _, h := range d.Headers {
		p.Headers = append(p.Headers, inbox.Header(h))
	}
	for _, e := range d.Edits {
		p.Edits = append(p.Edits, inbox.Edit{At: e.At, By: e.By, Reason: e.Reason, Payload: e.Payload})
	}
	return p, nil
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

func newDLQExport() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write parked messages to stdout, complete",
		Long: `Writes parked messages to stdout, a JSON document per line, with all that belongs to them: key, headers and payload in
base64, failures, edits. The last line counts them, with a hash. "orderflow dlq import" puts them back. Without --state also those that wait are written, so that the
line of a key stays whole. The file holds what the messages hold: keep it as you keep the database.`,
		Example: "  orderflow dlq export --group order > letters.jsonl\n  orderflow dlq export --state dead --class business_invalid | jq -r '.payload // empty | @base64d'",
		Args:    cobra.NoArgs,
		RunE:    exportParked,
	}
	addParkedFilter(cmd)
	addStateFlag(cmd, "")
	addDatabaseFlag(cmd)
	return cmd
}

func exportParked(cmd *cobra.Command, _ []string) error {
	state, err := stateFromFlag(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	found, err := findParked(cmd, url, state)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := &output{w: io.MultiWriter(cmd.OutOrStdout(), sum)}
	show, written := newProgress(cmd.ErrOrStderr()), 0
	err = eachGroup(cmd, url, func(pool *pgxpool.Pool, group string) error {
		for _, p := range found {
			if p.Group != group {
				continue
			}
			whole, err := inbox.ShowParked(cmd.Context(), pool, p.ID)
			if errors.Is(err, inbox.ErrNotFound) {
				continue // resolved since it was listed
			}
			if err != nil {
				return err
			}
			if err := out.line(newLetterDoc(whole)); err != nil {
				return err
			}
			written++
			show.at(written, len(found), "exported")
		}
		return nil
	})
	if err != nil {
		show.end()
		return partial(written, err)
	}
	if err := out.line(endDoc{letterVersion, written, hex.EncodeToString(sum.Sum(nil))}); err != nil {
		return err
	}
	show.say("%d messages were exported", written)
	return nil
}
