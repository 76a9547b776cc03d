package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/postgres"
)

// repeat runs, in a transaction, what notes something about an order at most once. A run that fails may have committed all the
// same; a second one finds out, because what is noted already is answered like what is new.
func (a *api) repeat(ctx context.Context, what string, orderID uuid.UUID, run func(ctx context.Context, tx pgx.Tx) error) error {
	var err error
	for range 2 {
		err = func() error {
			ctx, stop := context.WithTimeout(ctx, placeTimeout)
			defer stop()
			return pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error { return run(ctx, tx) })
		}()
		if err == nil || !postgres.Outage(err) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	a.log.WarnContext(ctx, "not known whether it was accepted", slog.String("what", what), slog.String("order_id", orderID.String()), slog.Any("error", err))
	return newProblem(http.StatusServiceUnavailable, kindOutcomeUnknown,
		"It is not known whether "+what+" was accepted. Send it again to find out.").retry(time.Second)
}
