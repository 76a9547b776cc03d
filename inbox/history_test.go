package inbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

// createLedger makes the table of effects that a history is judged by. behind is the last effect of the key that the
// handler saw: a handler that runs beside the one before it gives itself away, whichever commits first.
const createLedger = `
	CREATE TABLE ledger (
		n      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		key    text NOT NULL,
		id     uuid NOT NULL,
		seq    int  NOT NULL,
		behind int  NOT NULL
	);
	CREATE INDEX ON ledger (key, n)`

// enter is the effect of a message: a row in the ledger.
func enter(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	var b body
	if err := json.Unmarshal(m.Payload, &b); err != nil {
		return inbox.Permanent(err)
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO ledger (key, id, seq, behind)
		SELECT $1, $2::text::uuid, $3, coalesce((SELECT seq FROM ledger WHERE key = $1 ORDER BY n DESC LIMIT 1), 0)`,
		m.Key, m.ID.String(), b.Seq)
	return err
}

// history is what a group has made of a topic's records: their effects and fates, in one snapshot.
type history struct {
	appearances []appearance
	committed   map[int32]int64 // by partition, as it was before the snapshot
	atRest      bool            // everything was consumed

	effects    []effect             // as they were made
	parked     []entry              // in the order of their lines
	states     map[uuid.UUID]string // in processed_messages
	uncopied   int                  // dead messages without a copy for the dead-letter topic
	miscounted int                  // holds that say another number than lies behind them
}

// entry is a message as the judge knows it.
type entry struct {
	key string
	id  uuid.UUID
	seq int // 1, 2, 3 … by first appearances in its key
}

type appearance struct {
	entry
	partition int32
	offset    int64
}

type effect struct {
	entry
	behind int
}

// published notes records that the broker has acknowledged.
func (h *history) published(records ...*kgo.Record) error {
	for _, rec := range records {
		var b body
		if err := json.Unmarshal(rec.Value, &b); err != nil {
			return err
		}
		e := entry{key: string(rec.Key), seq: b.Seq}
		for _, header := range rec.Headers {
			if header.Key == "ce_id" {
				e.id = uuid.MustParse(string(header.Value))
			}
		}
		h.appearances = append(h.appearances, appearance{e, rec.Partition, rec.Offset})
	}
	return nil
}

// ends are the offsets behind the last records.
func (h *history) ends() map[int32]int64 {
	ends := map[int32]int64{}
	for _, a := range h.appearances {
		ends[a.partition] = max(ends[a.partition], a.offset+1)
	}
	return ends
}

// read reads what group has made of topic: first the offsets, because what lies below them must have its fate by then.
func (h *history) read(ctx context.Context, adm *kadm.Client, pool *pgxpool.Pool, group, topic string) error {
	h.committed = map[int32]int64{}
	if offsets, err := adm.FetchOffsets(ctx, group); err == nil { // else the group does not exist yet
		for partition, at := range offsets[topic] {
			h.committed[partition] = at.At
		}
	}
	h.effects, h.parked, h.states = nil, nil, map[uuid.UUID]string{}
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var e effect
		rows, _ := tx.Query(ctx, `SELECT key, id, seq, behind FROM ledger ORDER BY n`) // ForEachRow reports the error
		if _, err := pgx.ForEachRow(rows, []any{&e.key, &e.id, &e.seq, &e.behind}, func() error {
			h.effects = append(h.effects, e)
			return nil
		}); err != nil {
			return err
		}
		var p entry
		rows, _ = tx.Query(ctx, `
			SELECT key, event_id, (convert_from(payload, 'UTF8')::jsonb ->> 'seq')::int
			FROM parked_messages WHERE (consumer_group, topic) = ($1, $2) ORDER BY id`, group, topic) // as above
		if _, err := pgx.ForEachRow(rows, []any{&p.key, &p.id, &p.seq}, func() error {
			h.parked = append(h.parked, p)
			return nil
		}); err != nil {
			return err
		}
		var id uuid.UUID
		var state string
		rows, _ = tx.Query(ctx, `SELECT event_id, state FROM processed_messages WHERE consumer_group = $1`, group) // as above
		if _, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error {
			h.states[id] = state
			return nil
		}); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			SELECT
				(SELECT count(*) FROM parked_messages p
				 WHERE state = 'dead' AND NOT EXISTS (SELECT FROM outbox o WHERE o.headers ->> 'x-event-id' = p.event_id::text)),
				(SELECT count(*) FROM inbox_holds h
				 WHERE parked <> (SELECT count(*) FROM parked_messages p WHERE (p.topic, p.hold_key) = (h.topic, h.key)))`,
		).Scan(&h.uncopied, &h.miscounted)
	})
}

// verdict counts the messages that break a promise, each for the invariant it breaks.
type verdict struct {
	lost          int // I12: below a committed offset, or at rest, without a fate
	twice         int // I10: more than one effect
	disordered    int // I11: an effect before that of an earlier message of the key
	passed        int // I20: an effect although an earlier message of the key is parked
	misremembered int // I10: its row in processed_messages says otherwise, or there is none
	uncopied      int // I19: dead, without a copy
	miscounted    int // holds that say another number of messages than wait
	details       []string
}

// Err is nil when every promise is kept.
func (v verdict) Err() error {
	var said []string
	for _, c := range []struct {
		n    int
		what string
	}{
		{v.lost, "lost"},
		{v.twice, "applied twice"},
		{v.disordered, "out of order"},
		{v.passed, "past a held head"},
		{v.misremembered, "misremembered"},
		{v.uncopied, "dead without a copy"},
		{v.miscounted, "holds miscounted"},
	} {
		if c.n > 0 {
			said = append(said, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	if said == nil {
		return nil
	}
	return fmt.Errorf("history: %s\n%s", strings.Join(said, ", "), strings.Join(v.details, "\n"))
}

func (v *verdict) convict(count *int, e entry, format string, args ...any) {
	*count++
	if len(v.details) < 20 {
		v.details = append(v.details, fmt.Sprintf("%s/%d %s: ", e.key, e.seq, e.id)+fmt.Sprintf(format, args...))
	}
}

// judge holds a history against what package inbox promises.
func (h *history) judge() verdict {
	v := verdict{uncopied: h.uncopied, miscounted: h.miscounted}
	applied, parked := map[uuid.UUID]bool{}, map[uuid.UUID]bool{}
	last := map[string]int{} // effect of a key
	byKey := map[string]map[int]entry{}
	for _, a := range h.appearances {
		if byKey[a.key] == nil {
			byKey[a.key] = map[int]entry{}
		}
		byKey[a.key][a.seq] = a.entry
	}
	lines := map[string]int{} // last seq in the line of a key
	for _, p := range h.parked {
		parked[p.id] = true
		if p.seq <= lines[p.key] {
			v.convict(&v.disordered, p, "parked behind %d", lines[p.key])
		}
		lines[p.key] = p.seq
	}
	for _, e := range h.effects {
		if applied[e.id] {
			v.convict(&v.twice, e.entry, "has another effect")
			continue
		}
		applied[e.id] = true
		before := last[e.key]
		last[e.key] = max(before, e.seq)
		if e.seq <= before || e.behind != before {
			v.convict(&v.disordered, e.entry, "applied behind %d, having seen %d", before, e.behind)
			continue
		}
		for seq := before + 1; seq < e.seq; seq++ {
			skipped := byKey[e.key][seq]
			switch {
			case parked[skipped.id]:
				v.convict(&v.passed, e.entry, "applied while %d is parked", seq)
			case h.states[skipped.id] != "discarded":
				v.convict(&v.disordered, e.entry, "applied before %d", seq)
			}
		}
	}
	judged := map[uuid.UUID]bool{}
	for _, a := range h.appearances {
		below := a.offset < h.committed[a.partition]
		if judged[a.id] || !below && !h.atRest {
			continue
		}
		judged[a.id] = true
		h.judgeFate(&v, a, applied[a.id], parked[a.id])
	}
	return v
}

// judgeFate compares the fate that a message has with the one that is remembered.
func (h *history) judgeFate(v *verdict, a appearance, applied, parked bool) {
	state := h.states[a.id]
	switch {
	case applied && parked:
		v.convict(&v.misremembered, a.entry, "applied and parked")
	case applied && state != "done", parked && state != "parked":
		v.convict(&v.misremembered, a.entry, "applied %t, parked %t, remembered as %q", applied, parked, state)
	case !applied && !parked && state != "discarded":
		v.convict(&v.lost, a.entry, "no effect at partition %d offset %d, committed %d, remembered as %q",
			a.partition, a.offset, h.committed[a.partition], state)
	}
}

// unfinished returns how many messages have yet to come to rest: those without a fate, and those of lines whose head
// restsFor does not know.
func (h *history) unfinished(restsFor func(entry) bool) int {
	ended, heads := map[uuid.UUID]bool{}, map[string]entry{}
	for _, e := range h.effects {
		ended[e.id] = true
	}
	for _, p := range h.parked {
		if _, behind := heads[p.key]; !behind {
			heads[p.key] = p
		}
		ended[p.id] = restsFor(heads[p.key])
	}
	left := map[uuid.UUID]bool{}
	for _, a := range h.appearances {
		if !ended[a.id] && h.states[a.id] != "discarded" {
			left[a.id] = true
		}
	}
	for partition, end := range h.ends() {
		if h.committed[partition] < end {
			return len(left) + 1
		}
	}
	return len(left)
}

// heads are the parked messages that their lines wait for.
func (h *history) heads() []entry {
	var heads []entry
	for _, p := range h.parked {
		if !slices.ContainsFunc(heads, func(e entry) bool { return e.key == p.key }) {
			heads = append(heads, p)
		}
	}
	return heads
}
