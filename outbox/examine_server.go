package outbox

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

func (e *examination) primary(ctx context.Context) error {
	var standby bool
	if err := e.pool.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return err
	}
	if !standby {
		e.ok("connected to the primary")
		return nil
	}
	e.found(Fail, "connected to a standby",
		"a relay needs the primary, and what is said here is as old as the standby is behind",
		"use the primary's URL, here and for the relay")
	return nil
}

func (e *examination) identity(ctx context.Context) error {
	var written, here int64
	err := e.pool.QueryRow(ctx, `
		SELECT i.system_identifier, c.system_identifier
		FROM `+e.table("outbox_identity")+` i, pg_control_system() c`).Scan(&written, &here)
	if err != nil {
		return err
	}
	if written == here {
		e.ok("the outbox was written in this server")
		return nil
	}
	e.found(Fail, fmt.Sprintf("the outbox was written in another server (system identifier %d, this one is %d) and not rebased yet", written, here),
		"its transaction ids mean nothing here, so nothing is published until a relay has fitted them",
		"start a relay: it rebases the outbox before it publishes; if one runs, its log says why it does not")
	return nil
}

func (e *examination) sequence(ctx context.Context) error {
	var last, highest int64
	if err := e.pool.QueryRow(ctx, `SELECT last_value FROM `+e.table("outbox_seq_seq")).Scan(&last); err != nil {
		return err
	}
	for _, r := range e.status.Relays {
		highest = max(highest, r.highest)
	}
	if last >= highest {
		e.ok("the sequence is at %d, not below any message", last)
		return nil
	}
	e.found(Fail, fmt.Sprintf("the sequence is at %d, below message %d", last, highest),
		"new messages of a key get smaller numbers than its old ones, and may be published before them",
		fmt.Sprintf("SELECT setval('%s', %d)", e.table("outbox_seq_seq"), highest))
	return nil
}

func (e *examination) sequenceCache(ctx context.Context) error {
	var cache int64
	err := e.pool.QueryRow(ctx, `SELECT seqcache FROM pg_sequence WHERE seqrelid = $1::text::regclass`,
		e.table("outbox_seq_seq")).Scan(&cache)
	if err != nil {
		return err
	}
	if cache == 1 {
		e.ok("the sequence has no cache")
		return nil
	}
	e.found(Fail, fmt.Sprintf("the sequence has a cache of %d", cache),
		"each connection numbers its messages from a stock of its own, so keys get out of order",
		fmt.Sprintf("ALTER SEQUENCE %s CACHE 1, then restart the writers: connections keep the numbers they have", e.table("outbox_seq_seq")))
	return nil
}

func (e *examination) transactions(ctx context.Context) error {
	var all bool
	if err := e.pool.QueryRow(ctx, `SELECT pg_has_role('pg_read_all_stats', 'USAGE')`).Scan(&all); err != nil {
		return err
	}
	if !all {
		e.found(Warn, "transactions of other roles are hidden from this one", "one that is held open would not be noticed",
			"GRANT pg_read_all_stats to this role, or use the owner's URL")
	}
	t := e.status.OldestTransaction
	if t.PID == 0 {
		e.ok("no other transaction is open")
		return nil
	}
	what := fmt.Sprintf("the oldest transaction is open for %v: process %d of %s (%s), %s, %s", rounded(t.Age), t.PID, t.User, t.Application, t.State,
		strings.Join(strings.Fields(t.Query), " "))
	if t.Age <= e.opts.MaxTransaction {
		e.ok("%s", what)
		return nil
	}
	e.found(Warn, what,
		"its own messages and keys wait for its end; leaves that it has used cannot be given back; vacuum stands still",
		fmt.Sprintf("end it in its application, or SELECT pg_terminate_backend(%d)", t.PID))
	return nil
}

func (e *examination) prepared(ctx context.Context) error {
	var most string
	if err := e.pool.QueryRow(ctx, `SELECT current_setting('max_prepared_transactions')`).Scan(&most); err != nil {
		return err
	}
	rows, err := e.pool.Query(ctx, `
		SELECT gid, owner, extract(epoch FROM clock_timestamp() - prepared)::float8
		FROM pg_prepared_xacts
		WHERE database = current_database() AND clock_timestamp() - prepared > $1::float8 * interval '1 second'
		ORDER BY prepared`, e.opts.MaxTransaction.Seconds())
	if err != nil {
		return err
	}
	forgotten := 0
	var gid, owner string
	var age float64
	_, err = pgx.ForEachRow(rows, []any{&gid, &owner, &age}, func() error {
		forgotten++
		literal := "'" + strings.ReplaceAll(gid, "'", "''") + "'"
		e.found(Fail, fmt.Sprintf("transaction %s of %s was prepared %v ago and never ended", gid, owner, rounded(seconds(age))),
			"no restart ends it: its messages are not published, writers of its keys hang, leaves that it has used are kept",
			fmt.Sprintf("COMMIT PREPARED %[1]s or ROLLBACK PREPARED %[1]s, as its coordinator decided", literal))
		return nil
	})
	if err == nil && forgotten == 0 {
		e.ok("no prepared transaction is older than %v (max_prepared_transactions is %s)", e.opts.MaxTransaction, most)
	}
	return err
}
