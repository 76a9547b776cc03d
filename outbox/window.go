package outbox

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// listMax is the most rows listed at once, unless a test says so: 16 bytes each.
const listMax = 1_000_000

// chunk is how many of them are kept together. One long list would be copied as it grows, and take twice the memory.
const chunk = 1 << 15

// place is where a row of a big window is. Rows are never moved, so it can be fetched from there as long as the window
// is not passed, because until then its leaf is not truncated.
type place struct {
	seq    int64
	block  uint32
	offset uint16
	slot   uint8
	size   uint8 // the payload is shorter than 1<<size bytes
}

// window publishes everything between prev and cur: lists where the rows are once, because sorting them again for
// every page is what makes a relay slower the further it is behind, and fetches pages from there.
func (t *term) window(ctx context.Context) error {
	for {
		all, err := t.r.list(ctx, listed{
			where: `(txid >= pg_snapshot_xmax($1::text::pg_snapshot)
					OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot))))
				AND pg_visible_in_snapshot(txid, $2::text::pg_snapshot) AND seq > $3`,
			args: []any{t.at.prev, t.at.cur, t.at.lastSeq},
		})
		if err != nil {
			return err
		}
		complete := all.count() < t.r.listMax
		if err := t.pages(ctx, all, t.windowPage); err != nil {
			return err
		}
		if complete {
			break
		}
	}
	t.at.prev, t.at.cur, t.at.lastSeq = t.at.cur, "", 0
	return t.checkpoint(ctx, nil)
}

// windowPage makes a page of a big window durable.
func (t *term) windowPage(ctx context.Context, page []Record, aside []parkedRow) error {
	t.passed(page)
	t.at.lastSeq = page[len(page)-1].Seq
	return t.checkpoint(ctx, aside)
}

// listed says which rows to list.
type listed struct {
	where string
	args  []any
}

// places are where rows are, by seq, in chunks.
type places [][]place

func (p places) add(at place) places {
	if len(p) == 0 || len(p[len(p)-1]) == chunk {
		p = append(p, nil)
	}
	p[len(p)-1] = append(p[len(p)-1], at)
	return p
}

func (p places) count() (n int) {
	for _, c := range p {
		n += len(c)
	}
	return n
}

// list returns where the rows are, by seq, at most r.listMax of them.
func (r *Relay) list(ctx context.Context, what listed) (places, error) {
	var all places
	err := pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Compiling the query takes longer than running it over a hundred thousand rows.
		if _, err := tx.Exec(ctx, `SET LOCAL jit = off`); err != nil {
			return fmt.Errorf("list messages: %w", err)
		}
		rows, err := tx.Query(ctx, `
			SELECT slot, ctid, seq, octet_length(payload)
			FROM `+r.table("outbox")+`
			WHERE `+what.where+`
			ORDER BY seq
			LIMIT `+strconv.Itoa(r.listMax), what.args...)
		if err != nil {
			return fmt.Errorf("list messages: %w", err)
		}
		var (
			slot   int16
			tid    pgtype.TID
			seq    int64
			length int32
		)
		_, err = pgx.ForEachRow(rows, []any{&slot, &tid, &seq, &length}, func() error {
			all = all.add(place{
				seq: seq, block: tid.BlockNumber, offset: tid.OffsetNumber,
				slot: uint8(slot), size: uint8(bits.Len32(uint32(length))),
			})
			return nil
		})
		if err != nil {
			return fmt.Errorf("list messages: %w", err)
		}
		return nil
	})
	return all, err
}

// pages fetches and delivers the rows at all places page by page, the next one while one is in flight, and calls done
// after each. No page has places of two chunks.
func (t *term) pages(ctx context.Context, all places, done func(context.Context, []Record, []parkedRow) error) error {
	type fetched struct {
		page []Record
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	defer func() {
		cancel()
		reader.Wait()
	}()
	next := make(chan fetched)
	reader.Go(func() {
		defer close(next)
		for len(all) > 0 {
			n := t.r.pageLength(all[0])
			page, err := t.r.fetch(ctx, all[0][:n])
			if all[0] = all[0][n:]; len(all[0]) == 0 {
				all[0], all = nil, all[1:] // it is not needed any more
			}
			select {
			case next <- fetched{page, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	for f := range next {
		if f.err != nil {
			return f.err
		}
		aside, err := t.deliver(ctx, f.page)
		if err != nil {
			return err
		}
		if err := done(ctx, f.page, aside); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// pageLength is how many of places make a page.
func (r *Relay) pageLength(places []place) int {
	n, size := 0, 0
	for n < len(places) && n < r.opts.PageSize {
		size += 1 << places[n].size
		if n > 0 && size > r.opts.PageBytes {
			break
		}
		n++
	}
	return n
}

// fetch reads the rows at places, which are sorted by seq.
func (r *Relay) fetch(ctx context.Context, places []place) ([]Record, error) {
	var leaves [slots][]byte
	for _, p := range places {
		leaves[p.slot] = appendTID(leaves[p.slot], p)
	}
	page := make([]Record, 0, len(places))
	for slot, tids := range leaves {
		if tids == nil {
			continue
		}
		rows, err := r.pool.Query(ctx, `
			SELECT `+rowColumns+`
			FROM `+r.leaf(slot)+`
			WHERE ctid = ANY ($1::text::tid[])`, string(append(tids, '}')))
		if err != nil {
			return nil, fmt.Errorf("fetch messages: %w", err)
		}
		if page, err = r.appendRecords(page, rows); err != nil {
			return nil, fmt.Errorf("fetch messages: %w", err)
		}
	}
	slices.SortFunc(page, bySeq)
	if len(page) != len(places) {
		return nil, fmt.Errorf("fetch messages: %d of %d are where they were listed", len(page), len(places))
	}
	for i := range page {
		if page[i].Seq != places[i].seq {
			return nil, fmt.Errorf("fetch messages: found seq %d where %d was listed", page[i].Seq, places[i].seq)
		}
	}
	return page, nil
}

// appendTID adds p to the text of a tid[].
func appendTID(list []byte, p place) []byte {
	if list == nil {
		list = append(make([]byte, 0, 1<<10), '{')
	} else {
		list = append(list, ',')
	}
	list = append(list, `"(`...)
	list = strconv.AppendUint(list, uint64(p.block), 10)
	list = append(list, ',')
	list = strconv.AppendUint(list, uint64(p.offset), 10)
	return append(list, `)"`...)
}

func (r *Relay) appendRecords(page []Record, rows pgx.Rows) ([]Record, error) {
	defer rows.Close()
	reader := newRowReader()
	for rows.Next() {
		row, err := reader.scan(rows)
		if err != nil {
			return nil, err
		}
		record, err := row.record(r.source)
		if err != nil {
			return nil, err
		}
		page = append(page, record)
	}
	return page, rows.Err()
}
