package inbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Reasons of [ImportParked] not to take a message.
var (
	ErrKnown    = errors.New("already known")                 // parked, done or discarded here
	ErrConflict = errors.New("its id has another payload")    // known here by another payload
	ErrTooOld   = errors.New("its id is of over 28 days ago") // nobody can tell whether it was handled here
)

// ImportParked puts p, as [ShowParked] returned it in this database or another, back among the parked messages of its
// group, with its edits: dead, whatever it was, at the end of the line of its key, which is held from then on unless p
// was released. Nothing runs until [Replay].
//
// It follows the consumers' lock protocol inside tx, which the caller commits. It takes a message once: [ErrKnown] says
// that the group knows it already, [ErrConflict] that it knows the id with another payload, [ErrTooOld] that it may
// have forgotten it. With [Options.AnyID] no id says how old it is: import nothing that arrived longer ago than
// [Options.Remember]. Any other error is of the database, or of a p whose parts contradict each other.
func ImportParked(ctx context.Context, tx pgx.Tx, p Parked, by string) error {
	if key := holdKey(&kgo.Record{Key: p.RecordKey, Partition: p.Partition, Offset: p.Offset}); key != p.Key {
		return fmt.Errorf("message %s is said to be of key %q, its record is of %q", p.EventID, p.Key, key)
	}
	st := store{group: p.Group}
	if beyondHorizon(p.EventID, time.Now()) {
		// Without a ring the ids need not be UUIDv7, so they say nothing of their age.
		switch ring, err := st.isRing(ctx, tx); {
		case err != nil:
			return err
		case ring:
			return ErrTooOld
		}
	}
	sum := sha256.Sum256(p.Original())
	if err := st.claimParked(ctx, tx, p, sum[:16]); err != nil {
		return err
	}
	it := &item{
		key: p.Key, recordKey: p.RecordKey, recordTime: p.RecordTime, dedupID: p.EventID,
		msg: Message{Topic: p.Topic, Partition: p.Partition, Offset: p.Offset, Type: p.Type, Headers: p.Headers, Payload: p.Payload},
	}
	f := failure{class: p.Class, text: p.Error, fingerprint: p.Fingerprint, attempts: p.Attempts, first: p.FirstFailedAt, last: p.LastFailedAt}
	if err := st.park(ctx, tx, []parking{{item: it, state: StateDead, failure: f, release: p.Released}}); err != nil {
		return err
	}
	// The time of its arrival decides whether a drainer takes its id for too old.
	var id int64
	err := tx.QueryRow(ctx, `
		UPDATE parked_messages SET parked_at = $3
		WHERE consumer_group = $1 AND event_id = $2::text::uuid
		RETURNING id`, p.Group, p.EventID.String(), storableTime(p.ParkedAt)).Scan(&id)
	if err != nil {
		return fmt.Errorf("set the time of parking: %w", err)
	}
	if err := st.importEdits(ctx, tx, p, id); err != nil {
		return err
	}
	return st.audit(ctx, tx, auditRow{action: "import", topic: p.Topic, key: p.Key, eventID: p.EventID, parkedID: id, by: by})
}

// claimParked makes p's row in processed_messages one of a parked message, if p has no fate here.
func (s store) claimParked(ctx context.Context, tx pgx.Tx, p Parked, hash []byte) error {
	id, slot := p.EventID.String(), slotOf(p.EventID)
	tag, err := tx.Exec(ctx, `
		INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
		VALUES ($1, $2, $3::text::uuid, $4, 'parked')
		ON CONFLICT DO NOTHING`, slot, s.group, id, hash)
	if err != nil {
		return fmt.Errorf("insert processed message: %w", err)
	}
	if tag.RowsAffected() == 0 {
		var state string
		var known []byte
		// A statement of its own: it sees the row that the insert met.
		err := tx.QueryRow(ctx, `
			SELECT state, payload_hash FROM processed_messages
			WHERE slot = $1 AND consumer_group = $2 AND event_id = $3::text::uuid`, slot, s.group, id).Scan(&state, &known)
		switch {
		case err != nil:
			return fmt.Errorf("read processed message: %w", err)
		case !bytes.Equal(known, hash):
			return ErrConflict
		case state != "parked":
			return fmt.Errorf("%w: %s", ErrKnown, state)
		}
	}
	var state string
	err = tx.QueryRow(ctx, `
		SELECT state FROM parked_messages WHERE consumer_group = $1 AND event_id = $2::text::uuid`, s.group, id).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the parked message: %w", err)
	}
	return fmt.Errorf("%w: parked, and %s", ErrKnown, state)
}

// importEdits writes down p's edits as they were made, unless they are here already.
func (s store) importEdits(ctx context.Context, tx pgx.Tx, p Parked, parkedID int64) error {
	if len(p.Edits) == 0 {
		return nil
	}
	var here bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM inbox_edits WHERE consumer_group = $1 AND event_id = $2::text::uuid)`, s.group, p.EventID.String()).Scan(&here)
	if err != nil {
		return fmt.Errorf("look for edits: %w", err)
	}
	if here {
		return nil
	}
	p.ID = parkedID
	for _, e := range p.Edits {
		if err := s.noteEdit(ctx, tx, p, e); err != nil {
			return err
		}
	}
	return nil
}
