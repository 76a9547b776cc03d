package order

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/payment"
	"github.com/orderflow-dev/orderflow/saga"
)

// giveUpAfter is how many confirms must have had no answer, from an engine that lived to wait for it, before a payment that the
// provider has not charged yet is called off.
const giveUpAfter = 3

// payments is the step "charge payment": its call, its query, its compensation and what they leave in table payments.
type payments struct {
	provider payment.Provider
	pool     *pgxpool.Pool
}

// progress is what a charge stores before it goes on. The intent's id is stored before the intent is confirmed, so whoever
// finds no id knows that nothing can have been charged.
type progress struct {
	IntentID string `json:"intent_id"`
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
		created, err := p.provider.Create(ctx, call.Key, want)
		if err != nil {
			return nil, p.failed(ctx, in, call, "", err)
		}
		if err := matches(created, want); err != nil {
			return nil, err
		}
		done.IntentID = created.ID
		if err := call.Save(ctx, done); err != nil {
			return nil, err
		}
	}
	confirmed, err := p.provider.Confirm(ctx, call.Key+":confirm", done.IntentID)
	if err != nil {
		return nil, p.failed(ctx, in, call, done.IntentID, err)
	}
	if err := matches(confirmed, want); err != nil {
		return nil, err
	}
	if confirmed.Status != payment.Succeeded {
		return nil, fmt.Errorf("payment intent %s is %s after its confirm", done.IntentID, confirmed.Status)
	}
	return charged{done.IntentID, call.Key}, nil
}

// failed decides what a failed request of a charge means for the saga. Only what the provider says for good is a no: a 500,
// or silence, may have charged.
func (p *payments) failed(ctx context.Context, in *saga.Instance, call *saga.Call, intentID string, err error) error {
	if payment.NeverSent(err) {
		return saga.NotSent(err)
	}
	switch kind := payment.RefusedAs(err); {
	case kind == payment.KeyReused: // one order with two amounts: no retry can answer that
		return saga.Stuck(err)
	case kind == payment.IntentCanceled:
		return p.refuse(ctx, in, call, fate{intentID: intentID, status: "cancelled", reason: reasonNoAnswer})
	case kind == payment.PaymentDeclined, kind == payment.Invalid && intentID == "":
		return p.refuse(ctx, in, call, fate{intentID: intentID, status: "declined", reason: reasonDeclined})
	}
	return err
}

// refuse notes the provider's no and returns it as the step's.
func (p *payments) refuse(ctx context.Context, in *saga.Instance, call *saga.Call, final fate) error {
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
	got, ok, err := p.provider.ByID(ctx, done.IntentID)
	if err != nil {
		return saga.Answer{}, err
	}
	if !ok {
		return saga.NotYet(), nil // the look-up is behind: the provider gave us this id
	}
	if err := matches(got, want); err != nil {
		return saga.Answer{}, err
	}
	final := fate{intentID: got.ID, status: "cancelled", reason: reasonNoAnswer}
	switch got.Status {
	case payment.Succeeded:
		return saga.FoundSucceeded(charged{got.ID, call.Key}), nil
	case payment.Declined:
		final.status, final.reason = "declined", reasonDeclined
	case payment.Canceled:
	default:
		if call.Attempt-call.Lost < giveUpAfter {
			return saga.NotYet(), nil
		}
		// Not charged so far proves nothing about a confirm that is still on its way. Cancelled does.
		cancelled, err := p.provider.Cancel(ctx, got.ID)
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
	return notPaidBack(p.takeBack(ctx, in, call))
}

// notPaidBack is what a failed request to take money back means for the saga: only what the provider says for good is a no.
func notPaidBack(err error) error {
	if payment.NeverSent(err) {
		return saga.NotSent(err)
	}
	switch payment.RefusedAs(err) {
	case payment.KeyReused:
		return saga.Stuck(err)
	case payment.Invalid, payment.PaymentDeclined, payment.NotFound:
		return saga.Rejected(err.Error())
	case payment.IntentCanceled, payment.Undecided:
	}
	return err
}

func (p *payments) takeBack(ctx context.Context, in *saga.Instance, call *saga.Call) error {
	var done progress
	if _, err := call.Saved(&done); err != nil {
		return err
	}
	if done.IntentID == "" {
		found, ok, err := p.provider.ByKey(ctx, call.ActionKey)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		done.IntentID = found.ID
	}
	cancelled, err := p.provider.Cancel(ctx, done.IntentID)
	if err != nil {
		return err
	}
	if cancelled {
		return p.note(ctx, p.pool, in, call.ActionKey, fate{intentID: done.IntentID, status: "cancelled"})
	}
	refundID, err := p.provider.Refund(ctx, call.Key, done.IntentID)
	if err != nil {
		return err
	}
	return p.note(ctx, p.pool, in, call.ActionKey, fate{intentID: done.IntentID, status: "refunded", refundID: refundID})
}

// record notes a charge in the transaction that journals it.
func (p *payments) record(ctx context.Context, tx pgx.Tx, in *saga.Instance, result json.RawMessage) error {
	var c charged
	if err := json.Unmarshal(result, &c); err != nil {
		return saga.Stuck(fmt.Errorf("decode the charge of order %s: %w", in.ID, err))
	}
	return p.note(ctx, tx, in, c.Key, fate{intentID: c.IntentID, status: "charged"})
}

// fate is what became of an order's payment. Status and reason are those of table payments.
type fate struct {
	intentID, status, refundID, reason string
}

// execer is the pool, for what the provider has said for good before the saga has journaled it, or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// note keeps table payments in step. Every caller notes what the provider has said for good, so noting it twice, or by an
// engine that has lost its lane since, changes nothing. Money that went back was charged, whatever was said before.
func (p *payments) note(ctx context.Context, db execer, in *saga.Instance, key string, now fate) error {
	want, err := wanted(in)
	if err != nil {
		return err
	}
	return noteFate(ctx, db, in.ID, want, key, now)
}

func noteFate(ctx context.Context, db execer, orderID uuid.UUID, want payment.Intent, key string, now fate) error {
	_, err := db.Exec(ctx, `
		INSERT INTO payments (order_id, intent_id, idempotency_key, amount, currency, status, refund_id, reason)
		VALUES ($1, nullif($2, ''), $3, $4, $5, $6, nullif($7, ''), $8)
		ON CONFLICT (order_id) DO UPDATE
		SET intent_id = coalesce(excluded.intent_id, payments.intent_id), status = excluded.status,
			refund_id = excluded.refund_id, reason = excluded.reason, updated_at = clock_timestamp()
		WHERE payments.status IN ('pending', 'charged') OR excluded.status = 'refunded' AND payments.status <> 'refunded'`,
		orderID, now.intentID, key, want.Amount, want.Currency, now.status, now.refundID, now.reason)
	if err != nil {
		return fmt.Errorf("note that the payment of order %s is %s: %w", orderID, now.status, err)
	}
	return nil
}

// wanted is the intent that an order asks for.
func wanted(in *saga.Instance) (payment.Intent, error) {
	var o placed
	if err := in.Decode(&o); err != nil {
		return payment.Intent{}, err
	}
	return payment.Intent{Amount: o.Total, Currency: o.Currency, Method: o.PaymentMethod, Reference: in.ID.String()}, nil
}

// matches refuses an intent that is not about this order's money: charging it would be worse than stopping.
func matches(got, want payment.Intent) error {
	if got.ID == "" || got.Amount != want.Amount || got.Currency != want.Currency || got.Reference != want.Reference {
		return saga.Stuck(fmt.Errorf("payment intent %q is over %d %s for %q, want %d %s for %q",
			got.ID, got.Amount, got.Currency, got.Reference, want.Amount, want.Currency, want.Reference))
	}
	return nil
}
