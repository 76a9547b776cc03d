package api

import (
	"net/http"
	"time"
)

// slots bounds how many requests may hold or wait for a database connection. It stands before the pool: a request that
// finds no slot is turned away at once, where one that waited in the pool's queue would only be answered late, and make
// all behind it late too.
type slots chan struct{}

func newSlots(n int) slots { return make(slots, n) }

// enter takes a slot, or returns the 503 to answer with. The caller leaves when it is done with the database.
func (s slots) enter() (leave func(), err error) {
	select {
	case s <- struct{}{}:
		return func() { <-s }, nil
	default:
		return nil, newProblem(http.StatusServiceUnavailable, kindOverloaded, "Too many requests at once. Nothing was done; try again.").
			retry(time.Second)
	}
}
