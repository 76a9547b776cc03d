package outbox_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

// A backlog is sorted once, and while a page is in flight the next one is read, and no more than that one.
func TestBigWindowIsListedOnceAndReadOnePageAhead(t *testing.T) {
	t.Parallel()
	const messages, pageBytes = 3000, 20_000
	db := newOutbox(t)
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.outbox (slot, id, topic, key, type, content_type, payload)
		SELECT 3, gen_random_uuid(), 'orders', 'user-' || n % 10, 't', 'c',
			convert_to(repeat('x', CASE n % 100 WHEN 0 THEN 30000 WHEN 1 THEN 9000 ELSE 300 END), 'UTF8')
		FROM generate_series(1, $1::integer) AS n`, messages); err != nil {
		t.Fatal(err)
	}
	var lists, begun, read atomic.Int64
	progress := make(chan struct{}, messages)
	pool := tracedPool(t, db, traced{
		begins: func(sql string) {
			switch {
			case strings.Contains(sql, "octet_length(payload)"):
				lists.Add(1)
			case strings.Contains(sql, "WHERE ctid = ANY"):
				begun.Add(1)
			}
		},
		ends: func(sql string) {
			if strings.Contains(sql, "WHERE ctid = ANY") {
				read.Add(1)
				progress <- struct{}{}
			}
		},
	})
	var pages, sent, lastSeq int64
	done := make(chan struct{})
	start(t, pool, publisherFunc(func(ctx context.Context, page []outbox.Record) []error {
		pages++
		bytes := 0
		for i := range page {
			bytes += len(page[i].Value)
			if page[i].Seq <= lastSeq {
				t.Errorf("seq %d after %d", page[i].Seq, lastSeq)
			}
			lastSeq = page[i].Seq
		}
		if bytes > pageBytes && len(page) > 1 {
			t.Errorf("page %d has %d bytes in %d messages, limit %d", pages, bytes, len(page), pageBytes)
		}
		sent += int64(len(page))
		for sent < messages && read.Load() <= pages { // until the next page is here
			select {
			case <-progress:
			case <-ctx.Done():
				t.Errorf("page %d is in flight and the next one is not read", pages)
				return nil
			}
		}
		if n := begun.Load(); n > pages+1 {
			t.Errorf("%d pages are read while page %d is in flight, want one ahead", n, pages)
		}
		if sent == messages {
			close(done)
		}
		return nil
	}), outbox.RelayOptions{PageSize: 100, PageBytes: pageBytes, Lease: patience})
	select {
	case <-done:
	case <-t.Context().Done():
	}
	if n := lists.Load(); n != 1 {
		t.Errorf("the backlog is listed %d times, want once", n)
	}
	if pages < messages/100 {
		t.Errorf("%d pages for %d messages, want at most 100 in one", pages, messages)
	}
}

// A window that is listed in two pieces is published whole, once, in order.
func TestRelayDrainsAWindowOfTwoChunks(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), &outboxtest.Broker{}
	const messages = outbox.Chunk + 100
	if _, err := db.Pool.Exec(t.Context(), `
		INSERT INTO orders.outbox (id, topic, key, type, content_type, payload)
		SELECT gen_random_uuid(), 'orders', 'user-' || n % 100, 'test.happened.v1', 'application/json', '{}'
		FROM generate_series(1, $1::integer) AS n`, messages); err != nil {
		t.Fatal(err)
	}
	start(t, db.Pool, broker, outbox.RelayOptions{})
	records := waitFor(t, broker, messages)
	if len(records) != messages {
		t.Errorf("%d records for %d messages, want none twice", len(records), messages)
	}
	for i := 1; i < len(records); i++ {
		if records[i-1].Seq >= records[i].Seq {
			t.Fatalf("record %d has seq %d after %d", i, records[i].Seq, records[i-1].Seq)
		}
	}
}
