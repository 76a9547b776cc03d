package sandbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The states of an intent.
const (
	statusRequiresConfirmation = "requires_confirmation"
	statusSucceeded            = "succeeded"
	statusDeclined             = "declined"
	statusCanceled             = "canceled"
)

// The payment methods that do something of their own; every other one is declined.
const (
	methodOK         = "pm_ok"
	methodSlow       = "pm_slow"
	methodLate       = "pm_late"
	methodTimeout    = "pm_timeout"
	methodLostAnswer = "pm_lost_answer"
	methodErrorOnce  = "pm_error_once"

	methodTimeoutCharged    = "pm_timeout_charged"
	methodErrorCharged      = "pm_error_charged"
	methodWebhookFirst      = "pm_webhook_first"
	methodWebhookOnly       = "pm_webhook_only"
	methodWebhookRepeated   = "pm_webhook_repeated"
	methodRefundLostAnswer  = "pm_refund_lost_answer"
	methodRefundTimeoutOnce = "pm_refund_timeout_once"
)

// intent is a payment intent, as it is kept and as it is shown.
type intent struct {
	ID            string    `json:"id"`
	Status        string    `json:"status"`
	Amount        int64     `json:"amount"`
	Currency      string    `json:"currency"`
	PaymentMethod string    `json:"payment_method"`
	Reference     string    `json:"reference"`
	CreatedAt     time.Time `json:"created_at"`
	Refund        string    `json:"refund,omitempty"` // id of the refund, if there is one

	errored bool // pm_error_once, or pm_refund_timeout_once, has had its one error
}

// refund is a refund, as it is shown.
type refund struct {
	ID            string    `json:"id"`
	Status        string    `json:"status"`
	PaymentIntent string    `json:"payment_intent"`
	Amount        int64     `json:"amount"`
	Currency      string    `json:"currency"`
	CreatedAt     time.Time `json:"created_at"`
}

// problem is the body of every answer that is not a success.
type problem struct {
	Code          string `json:"code"`
	Message       string `json:"message"`
	PaymentIntent string `json:"payment_intent,omitempty"`
}

// answer is what a request is told. It is journaled with what the request did, so a repeat is told the same.
type answer struct {
	Status int             `json:"status"`
	Body   json.RawMessage `json:"body"`
}

func answerWith(status int, body any) *answer {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("sandbox: encode an answer: %v", err)) // only our own structs come here
	}
	return &answer{Status: status, Body: raw}
}

func refuse(status int, code, message string) *answer {
	return answerWith(status, problem{Code: code, Message: message})
}

// The operations that idempotency keys are scoped to.
const (
	opCreate  = "create"
	opConfirm = "confirm"
	opRefund  = "refund"
)

// request identifies a keyed request: two with one key must have one hash.
type request struct {
	op, key, hash string
}

type scopedKey struct{ op, key string }

type storedAnswer struct {
	hash   string
	intent string
	answer *answer
}

// payments is the payment provider's state: a fold of the journal, changed by apply only.
type payments struct {
	journal *journal
	hooks   *webhooks

	mu      sync.Mutex
	intents map[string]*intent
	answers map[scopedKey]storedAnswer
}

func newPayments(hooks *webhooks) *payments {
	return &payments{hooks: hooks, intents: map[string]*intent{}, answers: map[scopedKey]storedAnswer{}}
}

// apply changes the state as e says. It is the only place that does, for live requests and at start alike; otherwise a
// restart would find another state than the one that was answered for.
func (p *payments) apply(e entry) error {
	in := p.intents[e.PaymentIntent]
	if in == nil && e.Kind != kindIntent {
		return fmt.Errorf("%s of unknown payment intent %s", e.Kind, e.PaymentIntent)
	}
	var op string
	switch e.Kind {
	case kindIntent:
		op = opCreate
		p.intents[e.PaymentIntent] = &intent{
			ID: e.PaymentIntent, Status: statusRequiresConfirmation, Amount: e.Amount, Currency: e.Currency,
			PaymentMethod: e.PaymentMethod, Reference: e.Reference, CreatedAt: e.At,
		}
	case kindCharge:
		op = opConfirm
		in.Status = statusSucceeded
	case kindDecline:
		op = opConfirm
		in.Status = statusDeclined
	case kindRefund:
		op = opRefund
		in.Refund = e.Refund
	case kindCancel:
		in.Status = statusCanceled
	case kindError:
		in.errored = true
	case kindDelivered:
		p.hooks.forget(e.Private.Event)
		return nil
	default:
		return fmt.Errorf("unknown kind %q", e.Kind)
	}
	if e.Private == nil {
		return nil
	}
	if op != "" && e.Private.Answer != nil {
		p.answers[scopedKey{op, e.IdempotencyKey}] = storedAnswer{e.Private.RequestHash, e.PaymentIntent, e.Private.Answer}
	}
	if e.Private.Event != "" {
		return p.hooks.owe(e, *in)
	}
	return nil
}

// outcome is what became of a request.
type outcome struct {
	answer   *answer
	replayed bool
	did      string // the kind of the entry that the request caused, "" for none
	event    string // id of the webhook that tells of it, "" for none
}

// decision is what a request does and is told. An entry with an answer that is not final, like an error, is journaled
// without the answer.
type decision struct {
	entry  *entry // nil: nothing happens
	answer *answer
	final  bool // the answer is stored under the request's key
}

// do runs decide for a request that has not been answered before, under the lock, and returns when what it did is on
// disk. A request without a key is decided every time.
func (p *payments) do(req request, decide func() decision) (outcome, error) {
	out, err := p.decide(req, decide)
	if err != nil {
		return outcome{}, err
	}
	return out, p.journal.commit()
}

func (p *payments) decide(req request, decide func() decision) (outcome, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stored, ok := p.answers[scopedKey{req.op, req.key}]; ok && req.key != "" {
		if stored.hash != req.hash {
			return outcome{answer: refuse(http.StatusConflict, "idempotency_key_reused",
				"The Idempotency-Key was used before with another request.")}, nil
		}
		return outcome{answer: stored.answer, replayed: true}, nil
	}
	d := decide()
	if d.entry == nil {
		return outcome{answer: d.answer}, nil
	}
	d.entry.IdempotencyKey = req.key
	if d.final {
		d.entry.Private = &private{RequestHash: req.hash, Answer: d.answer}
	}
	if p.hooks.on() && eventType(d.entry.Kind) != "" {
		if d.entry.Private == nil {
			d.entry.Private = &private{}
		}
		d.entry.Private.Event = newID("evt_")
	}
	if _, err := p.journal.append(d.entry); err != nil {
		return outcome{}, err
	}
	if err := p.apply(*d.entry); err != nil {
		return outcome{}, err
	}
	out := outcome{answer: d.answer, did: d.entry.Kind}
	if d.entry.Private != nil {
		out.event = d.entry.Private.Event
	}
	return out, nil
}

// find returns a copy of an intent.
func (p *payments) find(id string) (intent, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if in := p.intents[id]; in != nil {
		return *in, true
	}
	return intent{}, false
}

// findByKey returns the intent that was created under key.
func (p *payments) findByKey(key string) (intent, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stored, ok := p.answers[scopedKey{opCreate, key}]; ok {
		return *p.intents[stored.intent], true
	}
	return intent{}, false
}

// list returns up to limit intents that were created in [since, until), behind the one called after. Ids sort by time.
func (p *payments) list(since, until time.Time, after string, limit int) []intent {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := []intent{}
	for _, in := range p.intents {
		if in.ID > after && !in.CreatedAt.Before(since) && in.CreatedAt.Before(until) {
			found = append(found, *in)
		}
	}
	slices.SortFunc(found, func(a, b intent) int { return strings.Compare(a.ID, b.ID) })
	return found[:min(limit, len(found))]
}

func (p *payments) create(req request, body createBody) (outcome, error) {
	return p.do(req, func() decision {
		e := &entry{
			Kind: kindIntent, PaymentIntent: newID("pi_"), Reference: body.Reference,
			Amount: body.Amount, Currency: body.Currency, PaymentMethod: body.PaymentMethod,
		}
		return decision{entry: e, final: true, answer: answerWith(http.StatusCreated, intent{
			ID: e.PaymentIntent, Status: statusRequiresConfirmation, Amount: e.Amount, Currency: e.Currency,
			PaymentMethod: e.PaymentMethod, Reference: e.Reference, CreatedAt: time.Now().UTC(),
		})}
	})
}

func (p *payments) confirm(req request, id string) (outcome, error) {
	return p.do(req, func() decision {
		in := p.intents[id]
		if in == nil {
			return decision{answer: notFound()}
		}
		switch in.Status {
		case statusSucceeded:
			return decision{answer: answerWith(http.StatusOK, in)}
		case statusCanceled:
			return decision{answer: answerWith(http.StatusPaymentRequired,
				problem{"intent_canceled", "The payment intent was cancelled and will never be charged.", in.ID})}
		case statusDeclined:
			return decision{answer: declined(in)}
		}
		return in.charge()
	})
}

// charge decides the confirm of an intent that requires one.
func (in *intent) charge() decision {
	e := &entry{
		PaymentIntent: in.ID, Reference: in.Reference, Amount: in.Amount, Currency: in.Currency,
		PaymentMethod: in.PaymentMethod,
	}
	switch in.PaymentMethod {
	case methodOK, methodSlow, methodLate, methodLostAnswer, methodTimeoutCharged, methodErrorCharged,
		methodWebhookFirst, methodWebhookOnly, methodWebhookRepeated, methodRefundLostAnswer, methodRefundTimeoutOnce:
	case methodErrorOnce:
		if !in.errored {
			e.Kind = kindError
			return decision{entry: e, answer: refuse(http.StatusInternalServerError, "internal_error", "Nothing was charged.")}
		}
	case methodTimeout:
		return decision{answer: timedOut()}
	default:
		e.Kind = kindDecline
		return decision{entry: e, answer: declined(in), final: true}
	}
	e.Kind = kindCharge
	charged := *in
	charged.Status = statusSucceeded
	return decision{entry: e, answer: answerWith(http.StatusOK, charged), final: true}
}

func (p *payments) cancel(id string) (outcome, error) {
	return p.do(request{}, func() decision {
		in := p.intents[id]
		if in == nil {
			return decision{answer: notFound()}
		}
		canceled := *in
		canceled.Status = statusCanceled
		switch in.Status {
		case statusSucceeded:
			return decision{answer: answerWith(http.StatusConflict,
				problem{"already_succeeded", "The payment intent was charged; refund it.", in.ID})}
		case statusCanceled:
			return decision{answer: answerWith(http.StatusOK, canceled)}
		}
		e := &entry{
			Kind: kindCancel, PaymentIntent: in.ID, Reference: in.Reference, Amount: in.Amount, Currency: in.Currency,
			PaymentMethod: in.PaymentMethod,
		}
		return decision{entry: e, answer: answerWith(http.StatusOK, canceled)}
	})
}

func (p *payments) refund(req request, body refundBody) (outcome, error) {
	return p.do(req, func() decision {
		in := p.intents[body.PaymentIntent]
		switch {
		case in == nil:
			return decision{answer: notFound()}
		case in.Status != statusSucceeded:
			return decision{answer: answerWith(http.StatusConflict,
				problem{"not_charged", "The payment intent was not charged.", in.ID})}
		case in.Refund != "":
			return decision{answer: answerWith(http.StatusConflict,
				problem{"already_refunded", "The payment intent was refunded under another Idempotency-Key.", in.ID})}
		}
		if in.PaymentMethod == methodRefundTimeoutOnce && !in.errored {
			return decision{entry: &entry{Kind: kindError, PaymentIntent: in.ID, Reference: in.Reference}, answer: timedOut()}
		}
		e := &entry{
			Kind: kindRefund, PaymentIntent: in.ID, Refund: newID("re_"), Reference: in.Reference, Amount: in.Amount,
			Currency: in.Currency, PaymentMethod: in.PaymentMethod,
		}
		return decision{entry: e, final: true, answer: answerWith(http.StatusCreated, refund{
			ID: e.Refund, Status: statusSucceeded, PaymentIntent: in.ID, Amount: in.Amount, Currency: in.Currency,
			CreatedAt: time.Now().UTC(),
		})}
	})
}

func declined(in *intent) *answer {
	return answerWith(http.StatusPaymentRequired, problem{"card_declined", "The card was declined.", in.ID})
}

func timedOut() *answer {
	return refuse(http.StatusGatewayTimeout, "timeout", "The card's bank did not answer.")
}

func notFound() *answer {
	return refuse(http.StatusNotFound, "not_found", "There is no such payment intent.")
}

func newID(prefix string) string { return prefix + uuid.Must(uuid.NewV7()).String() }
