package outbox

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Record is a message as a [Publisher] sends it: topic, key, headers and value, and where in the outbox it stood.
type Record struct {
	// Seq is the row's sequence number. Within one topic and key, records are published in its order.
	Seq int64
	// ID is the message's id, which is also in the header ce_id.
	ID         uuid.UUID
	Topic, Key string
	// Headers are in the order in which they are sent: the attributes of CloudEvents, then the message's own.
	Headers []kgo.RecordHeader
	Value   []byte
	// CreatedAt is when the message was written, by Postgres' clock.
	CreatedAt time.Time
}

// lane is what is kept in order, and what is parked together.
type lane struct{ topic, key string }

func (r *Record) lane() lane { return lane{r.Topic, r.Key} }

// header returns the value of the first header called name, or "".
func (r *Record) header(name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// bytes is an upper estimate of the record's size in a batch, before compression.
func (r *Record) bytes() int {
	size := 36 + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += 10 + len(h.Key) + len(h.Value)
	}
	return size
}

// row is a row of the outbox, or of the parked messages, as it is read.
type row struct {
	seq                           int64
	id                            uuid.UUID
	topic, key, kind, contentType string
	headers                       []byte
	payload                       []byte
	createdAt                     time.Time
}

// fixedHeaders are the headers that every record has; the others are the message's own.
var fixedHeaders = []string{headerSpecVersion, headerID, headerType, headerSource, headerTime, headerContentType, headerSeq}

var specVersion = []byte("1.0")

// record turns a row into what is sent. The header values share one buffer: a page has tens of thousands of them.
func (r *row) record(source []byte) (Record, error) {
	own, err := ownHeaders(r.headers)
	if err != nil {
		return Record{}, fmt.Errorf("message %s: %w", r.id, err)
	}
	buf := make([]byte, 0, 96+len(r.kind)+len(r.contentType))
	add := func(appended []byte) []byte {
		value := appended[len(buf):len(appended):len(appended)]
		buf = appended
		return value
	}
	headers := make([]kgo.RecordHeader, 0, len(fixedHeaders)+len(own))
	headers = append(headers,
		kgo.RecordHeader{Key: headerSpecVersion, Value: specVersion},
		kgo.RecordHeader{Key: headerID, Value: add(appendUUID(buf, r.id))},
		kgo.RecordHeader{Key: headerType, Value: add(append(buf, r.kind...))},
		kgo.RecordHeader{Key: headerSource, Value: source},
		kgo.RecordHeader{Key: headerTime, Value: add(r.createdAt.UTC().AppendFormat(buf, time.RFC3339Nano))},
		kgo.RecordHeader{Key: headerContentType, Value: add(append(buf, r.contentType...))},
		kgo.RecordHeader{Key: headerSeq, Value: add(strconv.AppendInt(buf, r.seq, 10))},
	)
	return Record{
		Seq: r.seq, ID: r.id, Topic: r.topic, Key: r.key,
		Headers: append(headers, own...), Value: r.payload, CreatedAt: r.createdAt,
	}, nil
}

func appendUUID(buf []byte, id uuid.UUID) []byte {
	const digits = "0123456789abcdef"
	for i, b := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			buf = append(buf, '-')
		}
		buf = append(buf, digits[b>>4], digits[b&15])
	}
	return buf
}

// ownHeaders decodes the headers column, sorted by name so that a record always looks the same.
func ownHeaders(stored []byte) ([]kgo.RecordHeader, error) {
	if len(stored) <= len("{}") {
		return nil, nil
	}
	var named map[string]string
	if err := json.Unmarshal(stored, &named); err != nil {
		if named, err = textHeaders(stored); err != nil {
			return nil, fmt.Errorf("decode headers: %w", err)
		}
	}
	headers := make([]kgo.RecordHeader, 0, len(named))
	for name, value := range named {
		headers = append(headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	slices.SortFunc(headers, func(a, b kgo.RecordHeader) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	return headers, nil
}

// textHeaders decodes headers of which not all are strings: those are sent as the JSON that they are. [Write] stores none,
// but a row that is inserted without it must not stop the relay for all others.
func textHeaders(stored []byte) (map[string]string, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(stored, &raw); err != nil {
		return nil, err
	}
	named := make(map[string]string, len(raw))
	for name, value := range raw {
		var text string
		if err := json.Unmarshal(value, &text); err != nil {
			text = string(value)
		}
		named[name] = text
	}
	return named, nil
}
