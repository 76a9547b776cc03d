package outbox

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// branchLimit is the literal limit of each branch of outbox_poll.
const branchLimit = 500

// found is what one poll found.
type found struct {
	snap        string
	incarnation string
	records     []Record
	big         bool // the poll did not return all there is; read it by listing
}

func bySeq(a, b Record) int { return cmp.Compare(a.Seq, b.Seq) }

// poll reads what is visible now and was not visible at prev. It must not run in a transaction that has written: a
// snapshot leaves out the transaction that takes it.
func (r *Relay) poll(ctx context.Context, prev string) (found, error) {
	started := time.Now()
	rows, err := r.pool.Query(ctx, `
		SELECT snap, incarnation, branch, seq, id, topic, key, type, content_type, headers, payload, created_at
		FROM `+r.table("outbox_poll")+`($1::text::pg_snapshot)`, prev)
	if err != nil {
		return found{}, fmt.Errorf("poll outbox: %w", err)
	}
	defer rows.Close()
	var (
		f      found
		counts [3]int
	)
	for rows.Next() {
		var (
			n   polled
			row row
		)
		if err := rows.Scan(&f.snap, &f.incarnation, &n.branch, &n.seq, &n.id, &n.topic, &n.key, &n.kind, &n.contentType,
			&row.headers, &row.payload, &n.createdAt); err != nil {
			return found{}, fmt.Errorf("poll outbox: %w", err)
		}
		if n.branch == nil {
			continue // nothing new, only the snapshot
		}
		counts[*n.branch]++
		if row.payload == nil {
			f.big = true
			continue
		}
		n.fill(&row)
		record, err := row.record(r.source)
		if err != nil {
			return found{}, err
		}
		f.records = append(f.records, record)
	}
	if err := rows.Err(); err != nil {
		return found{}, fmt.Errorf("poll outbox: %w", err)
	}
	if counts[1] == branchLimit || counts[2] == branchLimit {
		f.big = true
	}
	r.metrics.polled(ctx, time.Since(started))
	return f, nil
}

// polled are the columns that are null in the one row of a poll that found nothing.
type polled struct {
	branch                        *int16
	seq                           *int64
	id                            *uuid.UUID
	topic, key, kind, contentType *string
	createdAt                     *time.Time
}

func (p *polled) fill(r *row) {
	r.seq, r.id, r.createdAt = *p.seq, *p.id, *p.createdAt
	r.topic, r.key, r.kind, r.contentType = *p.topic, *p.key, *p.kind, *p.contentType
}

// rowColumns are the columns that a rowReader reads.
const rowColumns = `seq, id, topic, key, type, content_type, headers, payload, created_at`

// rowReader reads rows, and keeps one copy of each text that comes again and again.
type rowReader struct {
	row   row
	texts map[string]string
	into  []any
}

func newRowReader() *rowReader {
	r := &rowReader{texts: map[string]string{}}
	r.into = []any{
		&r.row.seq, &r.row.id, &repeated{r.texts, &r.row.topic}, &r.row.key, &repeated{r.texts, &r.row.kind},
		&repeated{r.texts, &r.row.contentType}, &r.row.headers, &r.row.payload, &r.row.createdAt,
	}
	return r
}

// scan reads the current one of rows.
func (r *rowReader) scan(rows pgx.Rows) (*row, error) { return &r.row, rows.Scan(r.into...) }

// repeated is the target of a text that is probably in seen.
type repeated struct {
	seen   map[string]string
	target *string
}

// ScanBytes is [pgtype.BytesScanner].
func (r *repeated) ScanBytes(text []byte) error {
	one, ok := r.seen[string(text)]
	if !ok {
		one = string(text)
		r.seen[one] = one
	}
	*r.target = one
	return nil
}
