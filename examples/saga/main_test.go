package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/saga"
	"github.com/orderflow-dev/orderflow/saga/sagatest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// The example books its trip, and can be run again on what it has made.
func TestTripIsBooked(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	for n := 1; n <= 2; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, db.URL, newWorld())
			cancel()
		}()
		booked := func(ctx context.Context) error {
			var trips int
			err := db.Pool.QueryRow(ctx, `SELECT count(*) FROM trips WHERE itinerary IS NOT NULL`).Scan(&trips)
			if err == nil && trips != n {
				err = fmt.Errorf("%d trips booked, want %d", trips, n)
			}
			return err
		}
		if err := await.New(nil, 0).For(ctx, "the trip", booked, func(error) bool { return true }); err != nil {
			cancel()
			t.Fatalf("run %d: %v; it ended with %v", n, err, <-ended)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run %d = %v, want nil once it is stopped", n, err)
		}
	}
}

// trip is what a traveller and the railway see of a trip.
type trip struct {
	State, Charge, Ticket, Itinerary string
	Seats                            int
}

// Wherever the engine dies, a trip is charged, ticketed and written once, or it is not at all, and nobody waits for its seat.
func TestEveryCrashLeavesOneTripOrNone(t *testing.T) {
	t.Parallel()
	ahead := slices.Clip([]string{
		"commit claim", "commit running charge card intent", "call charge card",
		"commit running issue ticket intent", "call issue ticket", "commit completed",
	})
	booked := trip{"confirmed", "charge-1", "ticket-1", "seat 1, ticket ticket-1", 1}
	for _, tc := range []struct {
		sentence string
		outside  func(w *world)
		state    string // of the trip when it is started
		points   []string
		want     trip
		refunds  int
	}{
		{"all goes well", func(*world) {}, "new", ahead, booked, 0},
		{
			"the answer to the charge is lost", func(w *world) { w.loses["charge"] = ofAnswer }, "new",
			append(ahead, "commit running charge card", "ask charge card"), booked, 0,
		},
		{
			"behind the pivot, the ticket's request is lost", func(w *world) { w.loses["ticket"] = ofRequest }, "new",
			append(ahead, "commit running issue ticket", "ask issue ticket"), booked, 0,
		},
		{
			"behind the pivot, the ticket's answer is lost", func(w *world) { w.loses["ticket"] = ofAnswer }, "new",
			append(ahead, "commit running issue ticket", "ask issue ticket"), booked, 0,
		},
		{
			"the card is declined", func(w *world) { w.declines = true }, "new",
			append(ahead[:3:3], "commit compensated"), trip{State: "new, failed: card declined"}, 0,
		},
		{
			"the traveller has withdrawn when the card is charged", func(*world) {}, "withdrawn",
			append(ahead[:3:3], "commit compensating charge card intent", "undo charge card", "commit compensated"),
			trip{State: "withdrawn, failed: withdrawn", Charge: "charge-1"}, 1,
		},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewEmpty(t)
			if err := migrate(t.Context(), db.Pool); err != nil {
				t.Fatal(err)
			}
			sagatest.EveryCrash(t, func(t testing.TB) *sagatest.World {
				w, in := newWorld(), newTrip()
				tc.outside(w)
				// One trip a world: those of the worlds before have gone.
				if _, err := db.Pool.Exec(t.Context(), `UPDATE seats SET trip = NULL`); err != nil {
					t.Fatal(err)
				}
				if _, err := db.Pool.Exec(t.Context(), `INSERT INTO trips (id, state) VALUES ($1, $2)`, in.ID, tc.state); err != nil {
					t.Fatal(err)
				}
				return &sagatest.World{
					Pool: db.Pool, Definitions: []*saga.Definition{bookTrip(w)}, Start: []saga.NewInstance{in},
					Options: saga.EngineOptions{
						RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond, Lease: time.Second, Log: slog.New(slog.DiscardHandler),
					},
					Points: tc.points,
					Check: func(t testing.TB) {
						if got := load(t, db.Pool, in); got != tc.want {
							t.Errorf("trip is %+v, want %+v", got, tc.want)
						}
						if len(w.charges) > 1 || len(w.tickets) > 1 || w.refunds != tc.refunds {
							t.Errorf("%d charges, %d tickets, %d refunds, want one charge and one ticket at most, and %d refunds", len(w.charges), len(w.tickets), w.refunds, tc.refunds)
						}
					},
				}
			})
		})
	}
}

func load(t testing.TB, pool *pgxpool.Pool, in saga.NewInstance) trip {
	t.Helper()
	rows, _ := pool.Query(t.Context(), `
		SELECT state, coalesce(charge, ''), coalesce(ticket, ''), coalesce(itinerary, ''), (SELECT count(*) FROM seats WHERE trip = id)
		FROM trips WHERE id = $1`, in.ID) // CollectExactlyOneRow reports the error
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[trip])
	if err != nil {
		t.Fatal(err)
	}
	return got
}
