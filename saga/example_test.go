package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
)

// booking is what the trip's steps know.
type booking struct {
	Train string `json:"train"`
	Cents int64  `json:"cents"`
}

// Cards is a payment provider.
type Cards interface {
	Charge(ctx context.Context, key string, cents int64) (id string, err error)
	Find(ctx context.Context, key string) (id string, err error)
	Void(ctx context.Context, key string) error
}

var errDeclined, errUnknownKey = errors.New("declined"), errors.New("unknown key")

// A trip: a seat is held in our database, a card is charged outside it, and from the confirmation on there is no way
// back.
func Example() {
	book := func(cards Cards) *saga.Definition {
		charge := func(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
			var b booking
			if err := in.Decode(&b); err != nil {
				return nil, err
			}
			id, err := cards.Charge(ctx, call.Key, b.Cents)
			if errors.Is(err, errDeclined) {
				return nil, saga.Rejected("card declined")
			}
			return id, err // any other error: nobody knows whether the card was charged
		}
		find := func(ctx context.Context, _ *saga.Instance, call *saga.Call) (saga.Answer, error) {
			id, err := cards.Find(ctx, call.Key)
			if errors.Is(err, errUnknownKey) {
				return saga.NotYet(), nil
			}
			return saga.FoundSucceeded(id), err
		}
		void := func(ctx context.Context, _ *saga.Instance, call *saga.Call) error {
			return cards.Void(ctx, call.ActionKey)
		}
		record := func(ctx context.Context, tx pgx.Tx, in *saga.Instance, result json.RawMessage) error {
			_, err := tx.Exec(ctx, `UPDATE bookings SET payment = $2 #>> '{}' WHERE id = $1`, in.ID, result)
			return err
		}
		hold := func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
			tag, err := tx.Exec(ctx, `UPDATE bookings SET state = 'held' WHERE id = $1 AND state = 'new'`, in.ID)
			if err == nil && tag.RowsAffected() == 0 {
				return saga.Rejected("no seat left")
			}
			return err
		}
		set := func(state string) saga.LocalFunc {
			return func(ctx context.Context, tx pgx.Tx, in *saga.Instance) error {
				_, err := tx.Exec(ctx, `UPDATE bookings SET state = $2 WHERE id = $1`, in.ID, state)
				return err
			}
		}
		return saga.Define("book-trip", 1,
			saga.Local("hold seat", hold).Undo(set("released")),
			saga.Remote("charge card", charge).Query(find).Undo(void).Record(record),
			saga.Local("confirm", set("confirmed")).Pivot(),
			saga.Local("print ticket", set("printed")), // after the pivot: tried until it succeeds
		).Deadline(15 * time.Minute)
	}

	// The engine runs beside the service's other loops.
	run := func(ctx context.Context, pool *pgxpool.Pool, cards Cards) error {
		engine, err := saga.NewEngine(pool, []*saga.Definition{book(cards)}, saga.EngineOptions{})
		if err != nil {
			return err
		}
		return engine.Run(ctx)
	}

	// A trip is started in the transaction that books it.
	place := func(ctx context.Context, tx pgx.Tx, user string, b booking) error {
		return saga.Start(ctx, tx, saga.NewInstance{
			ID: uuid.Must(uuid.NewV7()), Lane: user, Definition: "book-trip", Version: 1, Data: b,
		})
	}
	_, _ = run, place
}

// The constructor refuses definitions that could leave something half done.
func ExampleNewEngine() {
	charge := func(context.Context, *saga.Instance, *saga.Call) (any, error) { return nil, nil }
	confirm := func(context.Context, pgx.Tx, *saga.Instance) error { return nil }
	_, err := saga.NewEngine(nil, []*saga.Definition{saga.Define("book-trip", 1,
		saga.Remote("charge card", charge),
		saga.Local("confirm", confirm).Pivot(),
	)}, saga.EngineOptions{})
	fmt.Println(err)
	// Output:
	// saga engine: definition "book-trip" version 1: step "charge card" is remote and has no Query: an unknown outcome could only be guessed
	// definition "book-trip" version 1: step "charge card" is remote, stands before the pivot and has no Undo: its effect would outlive a failure
}
