package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/services/api/body"
)

// webhookPattern is where the payment provider sends its reports. It is not in the OpenAPI document: its one client has a
// protocol of its own.
const webhookPattern = "POST /v1/webhooks/payments"

// What became of a report, as the metric counts it.
const (
	reportTaken        = "taken"
	reportRepeated     = "repeated"
	reportIgnored      = "ignored"       // about nothing that an order waits for
	reportUnknownOrder = "unknown_order" // such as another shop's, at the same provider
	reportRefused      = "refused"
)

// serveWebhook answers the provider: 200 for all that need not be sent again.
func (a *api) serveWebhook(w http.ResponseWriter, r *http.Request) {
	if err := a.takeReport(r.Context(), r.Header, callOf(r.Context()).body); err != nil {
		a.prepass.problem(r.Context(), webhookPattern, err).write(w)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// takeReport makes a message of a report. What it means is for the order service to say.
func (a *api) takeReport(ctx context.Context, header http.Header, raw []byte) error {
	said, err := a.webhooks.Parse(header, raw)
	if err != nil {
		a.metrics.report(ctx, reportRefused)
		a.log.WarnContext(ctx, "webhook refused", slog.Any("error", err))
		if errors.Is(err, payment.ErrSignature) {
			return newProblem(http.StatusBadRequest, "", "The signature is not valid.")
		}
		return malformed(body.ErrMalformed)
	}
	orderID, err := uuid.Parse(said.Intent.Reference)
	if said.Intent.ID == "" || err != nil {
		a.metrics.report(ctx, reportIgnored)
		return nil
	}
	leave, err := a.slots.enter()
	if err != nil {
		return err
	}
	defer leave()
	// The provider may hang up; what was begun is finished, so that its next try is a repeat.
	outcome, err := a.storeReport(context.WithoutCancel(ctx), said, orderID)
	if err != nil {
		return err
	}
	a.metrics.report(ctx, outcome)
	switch outcome {
	case reportTaken:
		a.afterCommit()
	case reportUnknownOrder:
		a.log.WarnContext(ctx, "a payment of no order was reported", slog.String("order_id", orderID.String()), slog.String("intent_id", said.Intent.ID))
	}
	return nil
}

// storeReport writes the message about a report, once.
func (a *api) storeReport(ctx context.Context, said payment.Report, orderID uuid.UUID) (outcome string, err error) {
	e := event.PaymentReported{
		OrderID: orderID, Provider: a.webhooks.Provider(), IntentID: said.Intent.ID, Status: string(said.Intent.Status),
		Amount: said.Intent.Amount, Currency: said.Intent.Currency, RefundID: said.Intent.Refund, ReportedAt: said.At,
	}
	err = a.repeat(ctx, "the report", orderID, func(ctx context.Context, tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT user_id FROM orders WHERE id = $1`, orderID).Scan(&e.UserID)
		if errors.Is(err, pgx.ErrNoRows) {
			outcome = reportUnknownOrder // and not noted: an order that is restored later is told of it by the next repeat
			return nil
		}
		if err != nil {
			return fmt.Errorf("look up order %s of a payment: %w", orderID, err)
		}
		noted, err := tx.Exec(ctx, `
			INSERT INTO payment_webhooks (provider, event_id)
			VALUES ($1, $2)
			ON CONFLICT DO NOTHING`, e.Provider, said.ID)
		if err != nil {
			return fmt.Errorf("note report %s: %w", said.ID, err)
		}
		if outcome = reportRepeated; noted.RowsAffected() == 0 {
			return nil
		}
		outcome = reportTaken
		msg, err := outbox.JSON(e)
		if err != nil {
			return err
		}
		return outbox.Write(ctx, tx, msg)
	})
	return outcome, err
}
