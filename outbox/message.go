package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Names of the record headers that a relay sets. The attributes of CloudEvents 1.0 are in Kafka's binary mode.
const (
	headerSpecVersion = "ce_specversion"
	headerID          = "ce_id"
	headerType        = "ce_type"
	headerSource      = "ce_source"
	headerSubject     = "ce_subject"
	headerTime        = "ce_time"
	headerContentType = "content-type"
	headerSeq         = "outbox-seq"
)

// DefaultMaxBytes is how large a record may be unless [Writer.MaxBytes] says otherwise: what the 1,000,012 bytes of a
// producer's batch, which is below Kafka's default max.message.bytes, leave after the overhead of the batch.
const DefaultMaxBytes = 999_900

// maxKey is the longest key in bytes: parked messages are indexed by it, and Postgres indexes no row above some 2,700.
const maxKey = 1024

// ErrTooLarge is returned by [Write] for a message that its topic would refuse.
var ErrTooLarge = errors.New("message too large")

// Message is one message: what happened, who it is about, and where it goes.
type Message struct {
	// ID identifies the message for ever; consumers drop a second one with the same ID. Default: a new UUIDv7.
	ID uuid.UUID
	// Topic is the Kafka topic: 1 to 249 letters, digits, dots, dashes and underscores.
	Topic string
	// Key decides the partition. Messages of one topic and key arrive in the order of their commits. Required: without
	// a key there is no order to keep. At most 1024 bytes.
	Key string
	// Type names what happened, with its major version: "order.placed.v1".
	Type string
	// Subject is what it happened to, such as an order's id. Optional.
	Subject string
	// ContentType describes Payload. Default "application/json".
	ContentType string
	// Headers are further record headers. Names are visible ASCII, and neither start with "ce_" nor are one of those
	// that the relay sets. A traceparent here wins over the one of the context.
	Headers map[string]string
	// Payload becomes the record's value, byte for byte.
	Payload []byte
}

// Event is a payload that knows where it goes.
type Event interface {
	Topic() string
	Key() string
	Type() string
	Subject() string
}

// JSON returns the message about e, with e encoded as its payload.
func JSON(e Event) (Message, error) {
	payload, err := json.Marshal(e)
	if err != nil {
		return Message{}, fmt.Errorf("encode %s: %w", e.Type(), err)
	}
	return Message{Topic: e.Topic(), Key: e.Key(), Type: e.Type(), Subject: e.Subject(), Payload: payload}, nil
}

// check reports the first reason why Postgres or Kafka would refuse m, or why a reader could not rely on it.
func (m *Message) check(maxBytes int) error {
	if err := checkTopic(m.Topic); err != nil {
		return err
	}
	for _, text := range []struct {
		what, value string
		required    bool
	}{
		{"key", m.Key, true},
		{"type", m.Type, true},
		{"subject", m.Subject, false},
		{"content type", m.ContentType, false},
	} {
		if text.required && text.value == "" {
			return fmt.Errorf("%s is missing", text.what)
		}
		if !storable(text.value) {
			return fmt.Errorf("%s is not valid UTF-8 without NUL", text.what)
		}
	}
	if len(m.Key) > maxKey {
		return fmt.Errorf("key of %d bytes, limit %d: use an id, or a hash of what it is about", len(m.Key), maxKey)
	}
	for name, value := range m.Headers {
		if err := checkHeader(name, value); err != nil {
			return err
		}
	}
	if size := m.recordBytes(); size > maxBytes {
		return fmt.Errorf("%w: %d bytes with key and headers, limit %d", ErrTooLarge, size, maxBytes)
	}
	return nil
}

func checkTopic(topic string) error {
	if topic == "" {
		return errors.New("topic is missing")
	}
	if len(topic) > 249 || topic == "." || topic == ".." {
		return fmt.Errorf("topic %.40q is not a topic name", topic)
	}
	for _, c := range []byte(topic) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return fmt.Errorf("topic %q contains %q; letters, digits, dots, dashes and underscores are allowed", topic, c)
		}
	}
	return nil
}

func checkHeader(name, value string) error {
	if name == "" {
		return errors.New("a header has no name")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("header name %q contains %q; visible ASCII is allowed", name, c)
		}
	}
	lower := strings.ToLower(name)
	if strings.HasPrefix(lower, "ce_") || lower == headerContentType || lower == headerSeq {
		return fmt.Errorf("header %q is set by the relay", name)
	}
	if !storable(value) {
		return fmt.Errorf("header %q is not valid UTF-8 without NUL", name)
	}
	return nil
}

// storable reports whether Postgres takes s as text and as a JSON string.
func storable(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// relayHeaderBytes is room for the headers that the relay adds: their names, lengths, an id, a time, a sequence number,
// a traceparent and a source of up to 120 bytes.
const relayHeaderBytes = 512

// recordBytes is an upper estimate of m's size as an uncompressed record.
func (m *Message) recordBytes() int {
	size := relayHeaderBytes + len(m.Key) + len(m.Type) + len(m.Subject) + len(m.ContentType) + len(m.Payload)
	for name, value := range m.Headers {
		size += len(name) + len(value) + 10
	}
	return size
}
