package inbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/outbox"
)

// failure is what is known about a message that failed.
type failure struct {
	class, text, fingerprint string
	attempts                 int
	first, last              time.Time
}

func newFailure(v handlerError, attempts int, first, last time.Time) failure {
	f := failure{class: text(v.class), text: text(v.err.Error()), attempts: attempts, first: first, last: last}
	if first.IsZero() {
		f.first = last
	}
	f.fingerprint = fingerprint(f.class, f.text)
	return f
}

// fingerprint is the same for errors that differ in ids and numbers only.
func fingerprint(class, message string) string {
	words := strings.Fields(message)
	for i, w := range words {
		if strings.ContainsAny(w, "0123456789") {
			words[i] = "#"
		}
	}
	sum := sha256.Sum256([]byte(class + " " + strings.Join(words, " ")))
	return hex.EncodeToString(sum[:6])
}

// copyDead writes copies of dead messages to the dead-letter topic. The table stays the truth: the copy is for readers
// that have no access to it.
func (s store) copyDead(ctx context.Context, tx pgx.Tx, dead []parking) error {
	msgs := make([]outbox.Message, len(dead))
	for i, p := range dead {
		msgs[i] = s.deadCopy(p)
	}
	err := s.outbox.Write(ctx, tx, msgs...)
	if !errors.Is(err, outbox.ErrTooLarge) {
		return err
	}
	// The outbox refuses before it writes, so the transaction is whole. One by one, so that those beside it keep their payload.
	for _, m := range msgs {
		err := s.outbox.Write(ctx, tx, m)
		if errors.Is(err, outbox.ErrTooLarge) {
			m.Headers["x-payload-omitted"] = strconv.Itoa(len(m.Payload))
			m.Payload = nil
			err = s.outbox.Write(ctx, tx, m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s store) deadCopy(p parking) outbox.Message {
	m := p.item.msg
	headers := map[string]string{}
	size := 0
	for _, h := range m.Headers {
		size += len(h.Key) + len(h.Value)
		if size > 16<<10 || len(headers) >= 64 {
			break // a copy never grows past this; the table has them all
		}
		if copied(h.Key) && storable(string(h.Value)) {
			headers[h.Key] = string(h.Value)
		}
	}
	id := text(m.Header("ce_id"))
	if id == "" {
		id = p.item.dedupID.String()
	}
	for key, value := range map[string]string{
		"x-event-id":        id,
		"x-orig-topic":      m.Topic,
		"x-orig-partition":  strconv.Itoa(int(m.Partition)),
		"x-orig-offset":     strconv.FormatInt(m.Offset, 10),
		"x-consumer-group":  s.group,
		"x-error-class":     p.failure.class,
		"x-error":           p.failure.text,
		"x-attempts":        strconv.Itoa(p.failure.attempts),
		"x-first-failed-at": p.failure.first.UTC().Format(time.RFC3339Nano),
		"x-last-failed-at":  p.failure.last.UTC().Format(time.RFC3339Nano),
	} {
		headers[key] = value
	}
	typ, contentType := text(m.Type), text(m.Header("content-type"))
	if typ == "" {
		typ = "unknown"
	}
	return outbox.Message{
		Topic: s.dlqTopic, Key: p.item.key, Type: typ, Subject: text(m.Subject), ContentType: contentType, Headers: headers, Payload: m.Payload,
	}
}

// copied reports whether a header of the original goes into the copy as it is.
func copied(name string) bool {
	lower := strings.ToLower(name)
	own := strings.HasPrefix(lower, "ce_") || lower == "content-type" || lower == "outbox-seq" || name == ""
	return !own && !slices.ContainsFunc([]byte(name), func(c byte) bool { return c <= ' ' || c > '~' })
}
