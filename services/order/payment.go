package order

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/saga"
)

// giveUpAfter is how often the provider must have said that it has not charged yet before the payment is called off.
const giveUpAfter = 3

// payments is the step "charge payment": its call, its query, its compensation and what they leave in table payments.
type payments struct {
	gateway *gateway
	pool    *pgxpool.Pool
}

// progress is what a charge stores before it goes on. The intent's id is stored before the intent is confirmed, so whoever
// finds no id knows that nothing can have been charged.
type progress struct {
	IntentID string `json:"intent_id"`
	// Unanswered counts the queries that found the intent unconfirmed although a confirm had been sent.
	Unanswered int `json:"unanswered,omitempty"`
}

// charged is the step's result.
type charged struct {
	IntentID string `json:"intent_id"`
	Key      string `json:"key"`
}

func (p *payments) charge(ctx context.Context, in *saga.Instance, call *saga.Call) (any, error) {
	want, err := wanted(in)
	if err != nil {
		return nil, err
	}
	var done progress
	if _, err := call.Saved(&done); err != nil {
		return nil, err
	}
	if done.IntentID == "" {
		created, err := p.gateway.create(ctx, call.Key, want)
		if err != nil {
			return nil, p.failed(ctx, in, call, "", err)
		}
		if err := created.matches(want); err != nil {
			return nil, err
		}
		done.IntentID = created.ID
		if err := call.Save(ctx, done); err != nil {
			return nil, err
		}
	}
	confirmed, err := p.gateway.confirm(ctx, call.Key+":confirm", done.IntentID)
	if err != nil {
		return nil, p.failed(ctx, in, call, done.IntentID, err)
	}
	if err := confirmed.matches(want); err != nil {
		return nil, err
	}
	if confirmed.Status != intentSucceeded {
		return nil, fmt.Errorf("payment intent %s is %s after its confirm", done.IntentID, confirmed.Status)
	}
	return charged{done.IntentID, call.Key}, nil
}

// failed decides what a failed request of a charge means for the saga. Only what the provider says for good is a no: a 500,
// or silence, may have charged.
func (p *payments) failed(ctx context.Context, in *saga.Instance, call *saga.Call, intentID string, err error) error {
	if neverSent(err) {
		return saga.NotSent(err)
	}
	r, ok := errors.AsType[*refusal](err)
	switch {
	case !ok:
		return err
	case r.Code == "idempotency_key_reused": // one order with two amounts: no retry can answer that
		return saga.Stuck(err)
	case r.Code == "intent_canceled":
		return p.refuse(ctx, in, call, payment{intentID: intentID, status: "cancelled", reason: reasonNoAnswer})
	case r.status == http.StatusPaymentRequired,
		intentID == "" && (r.status == http.StatusBadRequest || r.status == http.StatusUnprocessableEntity):
		return p.refuse(ctx, in, call, payment{intentID: intentID, status: "declined", reason: reasonDeclined})
	}
	return err
}

// refuse notes the provider's no and returns it as the step's.
func (p *payments) refuse(ctx context.Context, in *saga.Instance, call *saga.Call, final payment) error {
	if err := p.note(ctx, p.pool, in, call.Key, final); err != nil {
		return err
	}
	return saga.Rejected(final.reason)
}

// find settles a charge whose answer did not come.
func (p *payments) find(ctx context.Context, in *saga.Instance, call *saga.Call) (saga.Answer, error) {
	want, err := wanted(in)
	if err != nil {
		return saga.Answer{}, err
	}
	var done progress
	if known, err := call.Saved(&done); err != nil {
		return saga.Answer{}, err
	} else if !known {
		return saga.NeverExisted(), nil // an intent nobody has the id of may exist, but nobody can have confirmed it
	}
	got, ok, err := p.gateway.byID(ctx, done.IntentID)
	if err != nil {
		return saga.Answer{}, err
	}
	if !ok {
		return saga.NotYet(), nil // the look-up is behind: the provider gave us this id
	}
	if err := got.matches(want); err != nil {
		return saga.Answer{}, err
	}
	final := payment{intentID: got.ID, status: "cancelled", reason: reasonNoAnswer}
	switch got.Status {
	case intentSucceeded:
		return saga.FoundSucceeded(charged{got.ID, call.Key}), nil
	case intentDeclined:
		final.status, final.reason = "declined", reasonDeclined
	case intentCanceled:
	default:
		done.Unanswered++
		if done.Unanswered < giveUpAfter {
			return saga.NotYet(), call.Save(ctx, done)
		}
		// Not charged so far proves nothing about a confirm that is still on its way. Cancelled does.
		cancelled, err := p.gateway.cancel(ctx, got.ID)
		if err != nil {
			return saga.Answer{}, err
		}
		if !cancelled {
			return saga.FoundSucceeded(charged{got.ID, call.Key}), nil
		}
	}
	return saga.FoundRejected(final.reason), p.note(ctx, p.pool, in, call.Key, final)
}

// undo leaves the order uncharged, now and later: it cancels the intent, and refunds it if it was charged before.
func (p *payments) undo(ctx context.Context, in *saga.Instance, call *saga.Call) error {
	var done progress
	if _, err := call.Saved(&done); err != nil {
		return err
	}
	if done.IntentID == "" {
		found, ok, err := p.gateway.byKey(ctx, call.ActionKey)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		done.IntentID = found.ID
	}
	cancelled, err := p.gateway.cancel(ctx, done.IntentID)
	if err != nil {
		return err
	}
	if cancelled {
		return p.note(ctx, p.pool, in, call.ActionKey, payment{intentID: done.IntentID, status: "cancelled"})
	}
	refundID, err := p.gateway.refund(ctx, call.Key, done.IntentID)
	if err != nil {
		return err
	}
	return p.note(ctx, p.pool, in, call.ActionKey, payment{intentID: done.IntentID, status: "refunded", refundID: refundID})
}

// record notes a charge in the transaction that journals it.
func (p *payments) record(ctx context.Context, tx pgx.Tx, in *saga.Instance, result json.RawMessage) error {
	var c charged
	if err := json.Unmarshal(result, &c); err != nil {
		return saga.Stuck(fmt.Errorf("decode the charge of order %s: %w", in.ID, err))
	}
	return p.note(ctx, tx, in, c.Key, payment{intentID: c.IntentID, status: "charged"})
}

// payment is what became of an order's payment. Status and reason are those of table payments.
type payment struct {
	intentID, status, refundID, reason string
}

// execer is the pool, for what the provider has said for good before the saga has journaled it, or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// note keeps table payments in step. Every caller notes what the provider has said for good, so noting it twice, or by an
// engine that has lost its lane since, changes nothing.
func (p *payments) note(ctx context.Context, db execer, in *saga.Instance, key string, now payment) error {
	want, err := wanted(in)
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, `
		INSERT INTO payments (order_id, intent_id, idempotency_key, amount, currency, status, refund_id, reason)
		VALUES ($1, nullif($2, ''), $3, $4, $5, $6, nullif($7, ''), $8)
		ON CONFLICT (order_id) DO UPDATE
		SET intent_id = coalesce(excluded.intent_id, payments.intent_id), status = excluded.status,
			refund_id = excluded.refund_id, reason = excluded.reason, updated_at = clock_timestamp()
		WHERE payments.status IN ('pending', 'charged')`,
		in.ID, now.intentID, key, want.Amount, want.Currency, now.status, now.refundID, now.reason)
	if err != nil {
		return fmt.Errorf("note that the payment of order %s is %s: %w", in.ID, now.status, err)
	}
	return nil
}

// wanted is the intent that an order asks for.
func wanted(in *saga.Instance) (intent, error) {
	var o placed
	if err := in.Decode(&o); err != nil {
		return intent{}, err
	}
	return intent{Amount: o.Total, Currency: o.Currency, PaymentMethod: o.PaymentMethod, Reference: in.ID.String()}, nil
}

// matches refuses an intent that is not about this order's money: charging it would be worse than stopping.
func (i intent) matches(want intent) error {
	if i.ID == "" || i.Amount != want.Amount || i.Currency != want.Currency || i.Reference != want.Reference {
		return saga.Stuck(fmt.Errorf("payment intent %q is over %d %s for %q, want %d %s for %q",
			i.ID, i.Amount, i.Currency, i.Reference, want.Amount, want.Currency, want.Reference))
	}
	return nil
}
