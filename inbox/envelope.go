package inbox

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Ids whose own time is further away than this are parked, never run: their row in the ring of processed_messages may
// be reclaimed already, or soon.
const (
	horizonPast   = 28 * 24 * time.Hour
	horizonFuture = 24 * time.Hour
	day           = 24 * time.Hour
)

// item is one message on its way through the consumer.
type item struct {
	msg     Message
	route   *route
	verdict error // set when the message cannot be handled, whatever the handler says

	recordKey  []byte
	recordTime time.Time
	dedupID    uuid.UUID // msg.ID, or made from the record's place when it has no usable id
	hash       []byte
	key        string // names the lane and the hold
	expired    bool   // dedupID is beyond the horizon: its row may be reclaimed at any time

	attempts    int
	firstFailed time.Time
	class       string        // of its last failure, while it waits in memory
	took        time.Duration // by the handler of single messages, in its last try
	track       *tracked      // nil when the message comes from parked_messages
}

func (it *item) size() int64 {
	n := len(it.msg.Payload) + len(it.recordKey) + 256
	for _, h := range it.msg.Headers {
		n += len(h.Key) + len(h.Value) + 48
	}
	return int64(n)
}

// decoder reads records as messages.
type decoder struct {
	routes                 *router
	maxPayload, maxHeaders int
	anyID                  bool
}

// decode reads the envelope of rec as of now. It returns nil for a type that is not this group's business. A record
// that breaks the envelope becomes an item with a verdict, which is parked like any other message.
func (d decoder) decode(rec *kgo.Record, now time.Time) *item {
	it := &item{recordKey: rec.Key, recordTime: rec.Timestamp, key: holdKey(rec)}
	m := &it.msg
	m.Topic, m.Partition, m.Offset, m.Key, m.Payload = rec.Topic, rec.Partition, rec.Offset, string(rec.Key), rec.Value
	m.Headers = make([]Header, len(rec.Headers))
	for i, h := range rec.Headers {
		m.Headers[i] = Header{Key: h.Key, Value: h.Value}
	}
	sum := sha256.Sum256(rec.Value)
	it.hash = sum[:16]
	if !d.identify(it, now) {
		return nil
	}
	return it
}

// identify fills what the headers say and judges it. It returns false for a message to ignore.
func (d decoder) identify(it *item, now time.Time) bool {
	m := &it.msg
	m.Type, m.Source, m.Subject = m.Header("ce_type"), m.Header("ce_source"), m.Header("ce_subject")
	m.Time = it.recordTime
	if t, err := time.Parse(time.RFC3339Nano, m.Header("ce_time")); err == nil {
		m.Time = t
	}
	rt, otherVersion := d.routes.find(m.Topic, m.Type)
	if rt == nil && m.Type != "" && !otherVersion {
		return false
	}
	it.route = rt
	if rt == nil {
		it.route = d.routes.fallback[m.Topic]
	}
	id, idErr := d.parseID(m)
	m.ID, it.dedupID = id, id
	if idErr != nil {
		it.dedupID = placeID(it)
	}
	it.expired = !d.anyID && beyondHorizon(it.dedupID, now)
	it.verdict = d.judge(it, idErr, otherVersion)
	return true
}

func (d decoder) judge(it *item, idErr error, otherVersion bool) error {
	m := &it.msg
	switch {
	case len(m.Headers) > d.maxHeaders:
		return malformed(ClassTooLarge, fmt.Errorf("%d headers, the limit is %d", len(m.Headers), d.maxHeaders))
	case len(m.Payload) > d.maxPayload:
		return malformed(ClassTooLarge, fmt.Errorf("payload of %d bytes, the limit is %d", len(m.Payload), d.maxPayload))
	case m.Type == "":
		return malformed(ClassBadEnvelope, errors.New("header ce_type is missing"))
	case idErr != nil:
		return malformed(ClassBadEnvelope, idErr)
	}
	if it.expired {
		return malformed(ClassBadEnvelope, fmt.Errorf("ce_id is of %s, outside of the last 28 days", idTime(m.ID).UTC().Format(time.DateOnly)))
	}
	if otherVersion {
		return &handlerError{kind: held, class: ClassUnsupportedVersion, err: fmt.Errorf("no route for %s, only for other versions", m.Type)}
	}
	if err := checkPayload(m.Header("content-type"), m.Payload); err != nil {
		return malformed(ClassUndecodable, err)
	}
	if it.route.Check == nil {
		return nil
	}
	if err := it.route.Check(*m); err != nil {
		class := classOf(err)
		if class == ClassTransient || class == ClassPermanent {
			class = ClassKeyMismatch
		}
		return PermanentAs(class, err)
	}
	return nil
}

// checkPayload refuses what no handler could read. Content that is not JSON is the handler's to judge.
func checkPayload(contentType string, payload []byte) error {
	switch {
	case payload == nil:
		return errors.New("no payload")
	case len(payload) == 0:
		return errors.New("empty payload")
	}
	mediaType, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	mediaType = strings.TrimSpace(mediaType)
	if mediaType != "" && mediaType != "application/json" && !strings.HasSuffix(mediaType, "+json") {
		return nil
	}
	if !utf8.Valid(payload) {
		return errors.New("payload is not UTF-8")
	}
	if !json.Valid(payload) {
		return errors.New("payload is not JSON")
	}
	return nil
}

// parseID reads a ce_id. In a ring only version 7 will do: the id's own time chooses its leaf.
func (d decoder) parseID(m *Message) (uuid.UUID, error) {
	s := m.Header("ce_id")
	if s == "" {
		return uuid.Nil, errors.New("header ce_id is missing")
	}
	id, err := uuid.Parse(s)
	isUUID := err == nil && len(s) == 36 // uuid.Parse also reads braces and urn:uuid:
	switch {
	case d.anyID && len(s) > maxAnyID:
		return uuid.Nil, fmt.Errorf("header ce_id has %d bytes, the limit is %d", len(s), maxAnyID)
	case d.anyID && !isUUID:
		return uuid.NewSHA1(anyIDs, fmt.Appendf(nil, "%d %s %s", len(m.Source), m.Source, s)), nil
	case d.anyID:
		return id, nil
	case !isUUID:
		return uuid.Nil, errors.New("header ce_id is not a UUID")
	}
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
		return uuid.Nil, errors.New("header ce_id is not a UUIDv7")
	}
	return id, nil
}

// maxAnyID is the longest ce_id with Options.AnyID, in bytes.
const maxAnyID = 256

// anyIDs is the namespace of the UUIDs made of other ids. It never changes: processed_messages is full of them.
var anyIDs = uuid.MustParse("6f8b3d0c-5e0a-4c0e-9a55-0d6f1f3b7a21")

// beyondHorizon reports whether id's own time is too long ago, or too far ahead, for the ring to remember it.
func beyondHorizon(id uuid.UUID, now time.Time) bool {
	at := idTime(id)
	return at.Before(now.Add(-horizonPast)) || at.After(now.Add(horizonFuture))
}

// placeID is the id of a record that has none, or whose id belongs to another payload: the same record always gets the
// same one. It has the form of a UUIDv7 of the record's time, so that its row is reclaimed like others.
func placeID(it *item) uuid.UUID {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00%d\x00", it.msg.Topic, it.msg.Partition, it.msg.Offset)
	h.Write(it.hash)
	var id uuid.UUID
	copy(id[:], h.Sum(nil))
	binary.BigEndian.PutUint64(id[:8], uint64(max(it.recordTime.UnixMilli(), 0))<<16|uint64(binary.BigEndian.Uint16(id[6:8])))
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// idTime returns the time in a UUIDv7.
func idTime(id uuid.UUID) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

// slotOf returns the leaf of the ring that id belongs to. Where there is no ring it means nothing and does no harm.
func slotOf(id uuid.UUID) int16 {
	return int16(int64(binary.BigEndian.Uint64(id[:8])>>16) / day.Milliseconds() % 32)
}

// maxHoldKey is the longest name of a key in bytes. Postgres indexes no row above some 2,700 bytes, of which topic and
// group need a part, and the outbox takes no longer key for a dead letter's copy.
const maxHoldKey = 1024

// holdKey names the key of a record in inbox_holds. A record without a key has no order to keep and waits alone; a key
// that Postgres cannot store as text is written in hex, one that is too long by its hash. The record's own key is kept
// beside it.
func holdKey(rec *kgo.Record) string {
	if len(rec.Key) == 0 {
		return fmt.Sprintf(`\none %d/%d`, rec.Partition, rec.Offset)
	}
	key := string(rec.Key)
	if !utf8.ValidString(key) || strings.ContainsRune(key, 0) || key[0] == '\\' {
		key = `\x` + hex.EncodeToString(rec.Key)
	}
	if len(key) > maxHoldKey {
		return fmt.Sprintf(`\sha256 %x`, sha256.Sum256(rec.Key))
	}
	return key
}
