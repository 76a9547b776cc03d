package order

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event/eventtest"
	"github.com/orderflow-dev/orderflow/internal/order"
)

// A message may wait in a topic, or parked, until its writer is long gone: a route that gets a new major version must still
// read the ones before.
func TestEveryVersionThatWasEverWrittenIsRead(t *testing.T) {
	t.Parallel()
	s := newShop(t, nil)
	for _, route := range routes() {
		for typ, payload := range eventtest.Versions(t, route.Type) {
			if !slices.Contains(route.Types(), typ) {
				t.Errorf("the route of %s does not read %s: it needs an upcaster", route.Type, typ)
				continue
			}
			msg := inbox.Message{ID: uuid.Must(uuid.NewV7()), Topic: route.Topic, Key: "u-1", Type: typ, Payload: payload}
			err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
				if route.Handle != nil {
					return route.Handle(t.Context(), tx, msg)
				}
				return route.HandleBatch(t.Context(), tx, []inbox.Message{msg})
			})
			if !errors.Is(err, order.ErrNotFound) {
				t.Errorf("%s: got %v, want the order to be looked for: the payload was read", typ, err)
			}
		}
	}
}
