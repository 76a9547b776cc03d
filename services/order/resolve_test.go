package order

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/saga"
)

// The provider says about each confirm that its key was used for another request, which no program can make sense of.
func TestAPersonSettlesACharge(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		charged         bool
		status, outside string
	}{
		{"it happened: the order goes on, and is not charged again", true, "completed", "charge 2000"},
		{"it did not: the order fails, and the intent cannot be charged later", false, "payment_failed", calledOff},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string]int64{"pen": 10}, func(_ *world, next http.Handler) http.Handler {
				return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if !strings.HasSuffix(r.URL.Path, "/confirm") {
						next.ServeHTTP(rw, r)
						return
					}
					if tt.charged {
						next.ServeHTTP(httptest.NewRecorder(), r)
					}
					rw.Header().Set("Content-Type", "application/json")
					rw.WriteHeader(http.StatusConflict)
					_, _ = io.WriteString(rw, `{"code":"idempotency_key_reused","message":"another request"}`)
				})
			})
			e := w.place(t, "ann", "pm_ok", item("pen", 2))
			w.broker.Produce(t, record(t, e))
			var stuck *saga.History
			eventually(t, "a stuck saga", func() (err error) {
				if stuck, err = saga.Load(t.Context(), w.pool, e.OrderID); err == nil && stuck.Instance.State != saga.StuckState {
					err = fmt.Errorf("it is %s", stuck.Instance.State)
				}
				return err
			})
			w.tx(t, func(tx pgx.Tx) error {
				var resolution saga.Resolution
				if tt.charged {
					var err error
					if resolution, err = Charged(t.Context(), tx, e.OrderID, ""); err != nil {
						return err
					}
				}
				return saga.Resolve(t.Context(), tx, e.OrderID, resolution, saga.Operator{By: "ops", Reason: "looked", Rev: stuck.Instance.Rev})
			})
			w.awaitStatus(t, e.OrderID, tt.status)
			if got := w.outside(t, e.OrderID); got != tt.outside {
				t.Errorf("the provider did %q, want %q", got, tt.outside)
			}
			if got := w.text(t, `SELECT count(*)::text FROM orders.payments WHERE order_id = $1 AND status = 'charged' AND intent_id IS NOT NULL`,
				e.OrderID); (got == "1") != tt.charged {
				t.Errorf("%s charged payments", got)
			}
		})
	}
}

func TestChargedNeedsAChargeThatWasSent(t *testing.T) {
	t.Parallel()
	s := newShop(t, map[string]int64{"pen": 1})
	e := s.place(t, "ann", "pm_ok", item("pen", 1))
	err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		_, err := Charged(t.Context(), tx, e.OrderID, "pi_1")
		return err
	})
	if !errors.Is(err, ErrNoCharge) {
		t.Errorf("Charged of an order that was never sent = %v, want ErrNoCharge", err)
	}
}
