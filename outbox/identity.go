package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// errRebased ends a term after its outbox was fitted to the server it was restored into.
var errRebased = errors.New("outbox was restored into another server and is rebased")

// knowServer returns the incarnation of the server, after leaving a token for the next crash to take away.
func (r *Relay) knowServer(ctx context.Context) (string, error) {
	incarnation, err := r.readIncarnation(ctx)
	if err != nil || !strings.HasSuffix(incarnation, " ") {
		return incarnation, err
	}
	r.log.InfoContext(ctx, "no crash token found: a new outbox, or postgres has crashed")
	if _, err := r.pool.Exec(ctx, `
		INSERT INTO `+r.table("outbox_crash")+` (token) VALUES ($1::text::uuid)
		ON CONFLICT DO NOTHING`, uuid.NewString()); err != nil {
		return "", fmt.Errorf("leave crash token: %w", err)
	}
	return r.readIncarnation(ctx)
}

func (r *Relay) readIncarnation(ctx context.Context) (string, error) {
	var incarnation string
	err := r.pool.QueryRow(ctx, `SELECT `+r.table("outbox_incarnation")+`()`).Scan(&incarnation)
	if err != nil {
		return "", fmt.Errorf("read incarnation of postgres: %w", err)
	}
	return incarnation, nil
}

// identify makes sure that the outbox was written in this server, or rebases it.
func (r *Relay) identify(ctx context.Context, l *lease) error {
	var same bool
	err := r.pool.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM `+r.table("outbox_identity")+` i
			JOIN pg_control_system() c ON c.system_identifier = i.system_identifier
		)`).Scan(&same)
	if err != nil {
		return fmt.Errorf("check identity of postgres: %w", err)
	}
	if same {
		return nil
	}
	r.log.WarnContext(ctx, "outbox comes from another server, its transaction ids mean nothing here: rebasing")
	if err := r.transact(ctx, func(tx pgx.Tx) error {
		return r.rebase(ctx, tx, l)
	}); err != nil {
		return fmt.Errorf("rebase outbox: %w", err)
	}
	r.metrics.rebased(ctx)
	return errRebased
}

// rebase gives every row a transaction id of this server: rows that some relay has not passed get this transaction's,
// which the new snapshot does not see; all others one that every snapshot sees. It may repeat messages to a relay that
// was ahead of another; it loses none.
func (r *Relay) rebase(ctx context.Context, tx pgx.Tx, l *lease) error {
	// No writer is in the outbox from here on, so the snapshot sees every row. It must be taken before anything is
	// written: this transaction's own id has to lie beyond it.
	if _, err := tx.Exec(ctx, `LOCK TABLE `+r.table("outbox")+` IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		return err
	}
	var snap string
	if err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&snap); err != nil {
		return err
	}
	if err := r.lockLeases(ctx, tx, l); err != nil {
		return err
	}
	if err := r.checkSequence(ctx, tx); err != nil {
		return err
	}
	latest := `(
		SELECT DISTINCT ON (relay) relay, prev, hi_seq, published_at
		FROM ` + r.table("outbox_cursor") + `
		ORDER BY relay, epoch DESC, n DESC
	)`
	for _, statement := range []string{
		`UPDATE ` + r.table("outbox") + ` o
		SET txid = CASE WHEN EXISTS (
			SELECT FROM ` + latest + ` c
			WHERE o.seq > c.hi_seq OR NOT pg_visible_in_snapshot(o.txid, c.prev)
		) THEN pg_current_xact_id() ELSE '3'::xid8 END`,
		`INSERT INTO ` + r.table("outbox_cursor") + ` (relay, epoch, n, prev, hi_seq, published_at)
		SELECT l.relay, l.epoch + 1, 0, '` + snap + `', c.hi_seq, c.published_at
		FROM ` + r.table("outbox_lease") + ` l
		JOIN ` + latest + ` c USING (relay)`,
		`UPDATE ` + r.table("outbox_lease") + ` SET epoch = epoch + 1, holder = '', expires_at = '-infinity'`,
		`UPDATE ` + r.table("outbox_identity") + `
		SET system_identifier = c.system_identifier
		FROM pg_control_system() c`,
		`DELETE FROM ` + r.table("outbox_crash"),
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// lockLeases keeps every relay of this outbox from leading meanwhile, and makes sure that this one does.
func (r *Relay) lockLeases(ctx context.Context, tx pgx.Tx, l *lease) error {
	rows, _ := tx.Query(ctx, `
		SELECT relay = $1 AND epoch = $2
		FROM `+r.table("outbox_lease")+`
		ORDER BY relay
		FOR UPDATE`, r.opts.Name, l.epoch) // CollectRows reports the error
	ours, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return err
	}
	for _, leads := range ours {
		if leads {
			return nil
		}
	}
	return errFenced
}

// checkSequence refuses an outbox whose sequence was not restored with its rows: new messages of a key would get
// smaller numbers than its old ones, or such as count as published.
func (r *Relay) checkSequence(ctx context.Context, tx pgx.Tx) error {
	var last, highest int64
	err := tx.QueryRow(ctx, `
		SELECT s.last_value, greatest(0, (SELECT max(seq) FROM `+r.table("outbox")+`),
			(SELECT max(hi_seq) FROM `+r.table("outbox_cursor")+`))
		FROM `+r.table("outbox_seq_seq")+` s`).Scan(&last, &highest)
	if err != nil {
		return fmt.Errorf("read the sequence of the outbox: %w", err)
	}
	if last < highest {
		return fmt.Errorf("the sequence of the outbox is at %d, below the %d that was given out: set it with "+
			"SELECT setval('outbox_seq_seq', %d)", last, highest, highest)
	}
	return nil
}
