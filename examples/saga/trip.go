package main

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

// bookTrip is the trip as a table: what is done, and beside it what takes it back.
func bookTrip(w *world) *saga.Definition {
	return saga.Define("book-trip", 1,
		saga.Local("hold seat", holdSeat).Undo(freeSeat),
		saga.Remote("charge card", w.charge).Query(w.charged).Undo(w.refund).Record(into("charge")),
		saga.Local("confirm", confirm).Pivot(), // the traveller has been promised the trip: from here on it only goes forward
		saga.Remote("issue ticket", w.issue).Query(w.issued).Record(into("ticket")),
		saga.Local("write itinerary", writeItinerary),
	).Deadline(15 * time.Minute).OnFailed(tell)
}

func holdSeat(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	tag, err := tx.Exec(ctx, `
		UPDATE seats SET trip = $1
		WHERE no = (SELECT no FROM seats WHERE trip IS NULL ORDER BY no LIMIT 1 FOR UPDATE SKIP LOCKED)`, in.ID)
	if err == nil && tag.RowsAffected() == 0 {
		return saga.Rejected("no seat left")
	}
	return err
}

func freeSeat(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	_, err := tx.Exec(ctx, `UPDATE seats SET trip = NULL WHERE trip = $1`, in.ID)
	return err
}

func confirm(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	tag, err := tx.Exec(ctx, `UPDATE trips SET state = 'confirmed' WHERE id = $1 AND state = 'new'`, in.ID)
	if err == nil && tag.RowsAffected() == 0 {
		return saga.Rejected("withdrawn")
	}
	return err
}

func writeItinerary(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
	_, err := tx.Exec(ctx, `
		UPDATE trips SET itinerary = concat_ws(', ', itinerary, (SELECT format('seat %s, ticket %s', no, ticket) FROM seats WHERE trip = id))
		WHERE id = $1`, in.ID)
	return err
}

func tell(ctx context.Context, tx pgx.Tx, in *saga.Instance, cause saga.Failure) error {
	_, err := tx.Exec(ctx, `UPDATE trips SET state = state || ', failed: ' || $2 WHERE id = $1`, in.ID, cause.Reason)
	return err
}

// into writes what the other side answered into a column of the trip, in the transaction that journals the answer.
func into(column string) saga.RecordFunc {
	return func(ctx context.Context, tx pgx.Tx, in *saga.Instance, result json.RawMessage) error {
		_, err := tx.Exec(ctx, `UPDATE trips SET `+pgx.Identifier{column}.Sanitize()+` = $2::jsonb #>> '{}' WHERE id = $1`, in.ID, string(result))
		return err
	}
}
