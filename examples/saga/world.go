package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/orderflow-dev/orderflow/saga"
)

// world stands for a card company and a ticket office. Like real ones they know a request by its key, and can be asked what
// they did. A service has clients of HTTP in its place.
type world struct {
	mu               sync.Mutex
	charges, tickets ledger
	refunds          int

	declines bool            // the card company says no
	loses    map[string]loss // by "charge" and "ticket", once
}

// ledger is what one side did, by key.
type ledger map[string]*deed

type deed struct {
	id     string
	undone bool
}

type loss string

const (
	ofRequest loss = "the request is lost"
	ofAnswer  loss = "the answer is lost"
)

func newWorld() *world {
	return &world{charges: ledger{}, tickets: ledger{}, loses: map[string]loss{}}
}

var errNoAnswer = errors.New("no answer")

// do carries a request out once, however often it comes.
func (w *world) do(l ledger, what string, call *saga.Call) (any, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := w.loses[what]
	delete(w.loses, what)
	if lost == ofRequest {
		return nil, errNoAnswer
	}
	d := l[call.Key]
	if d == nil {
		d = &deed{id: fmt.Sprintf("%s-%d", what, len(l)+1)}
		l[call.Key] = d
	}
	switch {
	case lost == ofAnswer:
		return nil, errNoAnswer
	case d.undone:
		return nil, saga.Rejected("cancelled")
	}
	return d.id, nil
}

// did says what became of a request. One that is not known may still be on its way.
func (w *world) did(l ledger, call *saga.Call) (saga.Answer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := l[call.Key]
	switch {
	case d == nil:
		return saga.NotYet(), nil
	case d.undone:
		return saga.FoundRejected("cancelled"), nil
	}
	return saga.FoundSucceeded(d.id), nil
}

func (w *world) charge(_ context.Context, _ *saga.Instance, call *saga.Call) (any, error) {
	if w.declines {
		return nil, saga.Rejected("card declined")
	}
	return w.do(w.charges, "charge", call)
}

func (w *world) charged(_ context.Context, _ *saga.Instance, call *saga.Call) (saga.Answer, error) {
	return w.did(w.charges, call)
}

// refund keeps the key of a charge that has not arrived as well, so one that comes late is refused.
func (w *world) refund(_ context.Context, _ *saga.Instance, call *saga.Call) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch d := w.charges[call.ActionKey]; {
	case d == nil:
		w.charges[call.ActionKey] = &deed{undone: true}
	case !d.undone:
		d.undone = true
		w.refunds++
	}
	return nil
}

func (w *world) issue(_ context.Context, _ *saga.Instance, call *saga.Call) (any, error) {
	return w.do(w.tickets, "ticket", call)
}

func (w *world) issued(_ context.Context, _ *saga.Instance, call *saga.Call) (saga.Answer, error) {
	return w.did(w.tickets, call)
}
