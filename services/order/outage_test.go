package order

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/event"
)

// A provider that is gone, then answers 503, then answers nothing, delays orders and does nothing else to them. It is
// counted, not timed: however long it lasts, the provider does not see every try, because the circuit is open.
func TestAProviderThatIsAwayOnlyDelays(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 1000})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil { // its process is gone: connections are refused
		t.Fatal(err)
	}
	w.payments = w.shop.payments(t, "http://"+addr)

	placed := w.placeMany(t, 120, func(i int) (string, []event.Item) {
		return []string{"pm_ok", "pm_ok", "pm_lost_answer", "pm_declined"}[i%4], []event.Item{item("pen", 2)}
	})
	opts := swift()
	opts.RetryMin, opts.RetryMax = 5*time.Millisecond, 50*time.Millisecond
	w.run(t, 1, opts)
	w.awaitTries(t, 10)

	var requests atomic.Int64
	handle := &atomic.Value{}
	handle.Store(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		rw.WriteHeader(http.StatusServiceUnavailable)
	}))
	w.serve(t, addr, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handle.Load().(http.Handler).ServeHTTP(rw, r)
	}))
	w.awaitSpared(t, &requests, len(placed))
	w.onlyDelayed(t, len(placed))

	requests.Store(0)
	handle.Store(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // to be told when the caller has given up
		<-r.Context().Done()
	}))
	w.awaitSpared(t, &requests, len(placed))
	w.onlyDelayed(t, len(placed))

	handle.Store(http.HandlerFunc(w.front.ServeHTTP))
	if ends := w.awaitAll(t); ends["completed"] != 90 || ends["payment_failed"] != 30 {
		t.Errorf("orders ended %v, want 90 completed and the 30 that were declined payment_failed", ends)
	}
	for i, e := range placed {
		end := []struct{ status, outside string }{{"completed", paid}, {"completed", paid}, {"completed", paid}, {"payment_failed", nothing}}[i%4]
		w.check(t, e.OrderID, end.status, end.outside)
	}
	w.judge(t)
}

// Orders that are being taken back when the provider goes away, or whose time ends while it is away, wait for it too: however
// often their compensation is tried, none needs a person.
func TestAProviderThatIsAwayOnlyDelaysWhatIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 1000})
	var away atomic.Bool
	away.Store(true)
	w.front.fault = func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if away.Load() && r.URL.Path != "/v1/payment_intents" {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(rw, r)
	}
	placed := w.placeMany(t, 20, func(int) (string, []event.Item) { return "pm_ok", []event.Item{item("pen", 2)} })
	opts := swift()
	opts.MaxUndoAttempts = 3
	w.run(t, 1, opts)
	eventually(t, "their time ends, and the provider says nothing", func() error {
		// Again and again: the engine writes back what it has read.
		if _, err := w.DB.Pool.Exec(t.Context(), `
			UPDATE orders.saga_instances SET deadline_at = clock_timestamp()
			WHERE state = 'running' AND EXISTS (SELECT FROM orders.saga_journal j WHERE j.saga_id = id AND j.saved IS NOT NULL)`); err != nil {
			return err
		}
		return want("orders that are taken back with more than ten tries, or stuck", w.text(t, `
			SELECT count(*)::text FROM orders.saga_instances WHERE state = 'compensating' AND attempt > 10 OR state = 'stuck'`), "20")
	})
	if got := w.text(t, `SELECT count(*)::text FROM orders.saga_instances WHERE state = 'stuck'`); got != "0" {
		t.Errorf("%s orders are stuck, want none", got)
	}
	away.Store(false)
	if ends := w.awaitAll(t); ends["payment_failed"] != len(placed) {
		t.Errorf("orders ended %v, want all payment_failed", ends)
	}
	for _, e := range placed {
		w.check(t, e.OrderID, "payment_failed", calledOff)
	}
	w.judge(t)
}

// What the provider refuses to take back is not tried for ever.
func TestAnUndoThatTheProviderRefusesIsStuck(t *testing.T) {
	t.Parallel()
	w := newTill(t, map[string]int64{"pen": 10})
	w.front.creating = func(id uuid.UUID) {
		if err := w.accept(context.WithoutCancel(t.Context()), id); err != nil {
			t.Errorf("cancel order %s: %v", id, err)
		}
	}
	w.front.fault = func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/v1/refunds" {
			rw.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(rw, `{"code":"disputed","message":"the charge is disputed"}`)
			return
		}
		next.ServeHTTP(rw, r)
	}
	e := w.placed(t, "pm_ok")
	opts := swift()
	opts.MaxUndoAttempts = 3
	w.run(t, 1, opts)
	w.start(t, e)
	eventually(t, "a stuck saga", func() error {
		return want("its state, tries and error", w.text(t, `
			SELECT format('%s %s %s', state, attempt, error LIKE '%422 disputed%') FROM orders.saga_instances WHERE id = $1`, e.OrderID), "stuck 3 t")
	})
}

// serve serves on an address that was free until now.
func (w *till) serve(t testing.TB, addr string, handler http.Handler) {
	t.Helper()
	var ln net.Listener
	eventually(t, "listen on "+addr, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	server := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// awaitTries waits until the payment of each order was tried n times.
func (w *till) awaitTries(t testing.TB, n int) {
	t.Helper()
	eventually(t, "tries of each payment", func() error {
		return want("sagas that were tried less often", w.text(t, `
			SELECT count(*)::text FROM orders.saga_instances WHERE attempt < $1 OR step_name <> $2`, n, stepCharge), "0")
	})
}

// awaitSpared waits until the provider has been tried, and then left alone: of the tries of each order, one has made no
// request.
func (w *till) awaitSpared(t testing.TB, requests *atomic.Int64, orders int) {
	t.Helper()
	tries := func() (n int64) {
		t.Helper()
		if err := w.DB.Pool.QueryRow(t.Context(), `SELECT sum(attempt)::bigint FROM orders.saga_instances`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := tries()
	eventually(t, "an open circuit", func() error {
		if n, seen := tries()-before, requests.Load(); seen == 0 || n < seen+int64(orders) {
			return fmt.Errorf("%d tries made %d requests, want one less for each order", n, seen)
		}
		return nil
	})
}

// onlyDelayed checks that no order has come to an end, and none waits for a person.
func (w *till) onlyDelayed(t testing.TB, orders int) {
	t.Helper()
	got := w.text(t, `
		SELECT format('%s %s', count(*) FILTER (WHERE o.status = 'pending'), count(*) FILTER (WHERE s.state = 'running'))
		FROM orders.orders o JOIN orders.saga_instances s USING (id)`)
	if err := want("pending orders and running sagas", got, strconv.Itoa(orders)+" "+strconv.Itoa(orders)); err != nil {
		t.Error(err)
	}
}
