package inbox

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Message is one message as a handler sees it: the CloudEvents attributes of a record, and the record's place in Kafka.
type Message struct {
	ID        uuid.UUID // ce_id, the id by which a message is known; see [Options.AnyID] for ids that are no UUID
	Topic     string
	Partition int32
	Offset    int64
	Key       string
	Type      string    // ce_type, for example "order.placed.v1"
	Source    string    // ce_source
	Subject   string    // ce_subject
	Time      time.Time // ce_time, or the record's timestamp when ce_time is missing or malformed
	Headers   []Header
	Payload   []byte

	// Attempt counts the handler's tries of this message, this one included. Tries that ended in an outage, a
	// deadlock or somebody else's failure in the same batch are not counted.
	Attempt int
}

// Header is one header of a record.
type Header struct {
	Key   string
	Value []byte
}

// Header returns the value of the first header called key, or "".
func (m Message) Header(key string) string {
	for _, h := range m.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// Handler applies one message through tx. It shares tx with messages of other keys and must not end it.
type Handler func(ctx context.Context, tx pgx.Tx, msg Message) error

// BatchHandler applies messages of many keys at once. Messages of one key are in order. When it fails, its writes are
// rolled back and it is called again with parts of the batch, down to single messages: the message that fails alone
// gets the blame.
type BatchHandler func(ctx context.Context, tx pgx.Tx, msgs []Message) error

// Policy says what becomes of a key when one of its messages is dead.
type Policy int

const (
	// HoldKey keeps the later messages of the key waiting behind the dead one, so order holds whatever happens.
	HoldKey Policy = iota
	// ReleaseKey lets the later messages of the key pass the dead one. For effects without order, such as mail.
	ReleaseKey
)

// Route sends the messages of one type in one topic to a handler. Exactly one of Handle and HandleBatch is set. [Typed] and
// [TypedBatch] make routes whose handlers get payloads decoded.
type Route struct {
	Topic, Type string
	Handle      Handler
	HandleBatch BatchHandler

	// Check, when set, judges a message before any handler sees it, for example that its key is the payload's user.
	// An error makes the message dead, with class key_mismatch unless [WithClass] gives another.
	Check  func(Message) error
	Policy Policy

	older []string // types of earlier versions that the handler reads as well
}

// Types returns the types of the route's messages: its own, and those that it has an [Upcast] for.
func (r Route) Types() []string { return append([]string{r.Type}, r.older...) }
