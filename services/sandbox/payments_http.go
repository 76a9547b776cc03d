package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

const maxBody = 64 << 10

type createBody struct {
	Amount        int64  `json:"amount"`
	Currency      string `json:"currency"`
	PaymentMethod string `json:"payment_method"`
	Reference     string `json:"reference"`
}

func (b createBody) check() error {
	switch {
	case b.Amount <= 0:
		return errors.New("amount is a positive number of minor units")
	case !isCurrency(b.Currency):
		return errors.New("currency is three capital letters")
	case b.PaymentMethod == "" || len(b.PaymentMethod) > 255:
		return errors.New("payment_method has 1 to 255 characters")
	case b.Reference == "" || len(b.Reference) > 255:
		return errors.New("reference has 1 to 255 characters")
	}
	return nil
}

type refundBody struct {
	PaymentIntent string `json:"payment_intent"`
	Amount        *int64 `json:"amount"`
}

func isCurrency(s string) bool {
	for _, c := range s {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return len(s) == 3
}

func (s *server) createIntent(w http.ResponseWriter, r *http.Request) {
	var body createBody
	req, ok := s.keyed(w, r, opCreate, &body)
	if !ok {
		return
	}
	if err := body.check(); err != nil {
		s.write(w, refuse(http.StatusBadRequest, "invalid_request", err.Error()))
		return
	}
	out, err := s.payments.create(req, body)
	s.finish(w, out, err)
}

func (s *server) confirmIntent(w http.ResponseWriter, r *http.Request) {
	req, ok := s.keyed(w, r, opConfirm, nil)
	if !ok {
		return
	}
	id := r.PathValue("id")
	in, known := s.payments.find(id)
	if known && in.Status == statusRequiresConfirmation && !s.linger(r, in.PaymentMethod) {
		drop(w) // the sandbox is stopping: this confirm was never decided
		return
	}
	out, err := s.payments.confirm(req, id)
	if err == nil && out.did == kindCharge {
		s.charged(w, r, in.PaymentMethod, out)
		return
	}
	s.finish(w, out, err)
}

// charged answers the confirm that has charged, as the payment method says. A repeat is told the stored answer.
func (s *server) charged(w http.ResponseWriter, r *http.Request, method string, out outcome) {
	switch method {
	case methodLostAnswer:
		drop(w)
		return
	case methodWebhookFirst, methodWebhookOnly:
		if !s.await(r, s.hooks.told(out.event), s.cfg.Hang) || method == methodWebhookOnly {
			drop(w)
			return
		}
	case methodTimeoutCharged:
		if !s.sleep(r.Context().Done(), s.cfg.Hang) {
			drop(w)
			return
		}
		out.answer = timedOut()
	case methodErrorCharged:
		out.answer = refuse(http.StatusInternalServerError, "internal_error", "Something went wrong.")
	}
	s.finish(w, out, nil)
}

// linger makes the caller of a confirm wait as its payment method says. It reports false if the sandbox stopped
// meanwhile. A slow charge goes on without a caller that gave up: that is what makes it dangerous.
func (s *server) linger(r *http.Request, method string) bool {
	switch method {
	case methodSlow:
		return s.sleep(nil, s.cfg.Slow)
	case methodLate:
		return s.sleep(nil, s.cfg.Late)
	case methodTimeout:
		return s.sleep(r.Context().Done(), s.cfg.Hang)
	}
	return true
}

// sleep waits for d, or until interrupt, and reports false if the sandbox stopped meanwhile.
func (s *server) sleep(interrupt <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-interrupt:
		return true
	case <-s.stop:
		return false
	}
}

// await waits until the receiver was told, and reports false if that did not come within d, if the caller gave up, or if
// the sandbox stopped.
func (s *server) await(r *http.Request, told <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-told:
		return true
	case <-timer.C:
	case <-r.Context().Done():
	case <-s.stop:
	}
	return false
}

func (s *server) cancelIntent(w http.ResponseWriter, r *http.Request) {
	out, err := s.payments.cancel(r.PathValue("id"))
	s.finish(w, out, err)
}

func (s *server) createRefund(w http.ResponseWriter, r *http.Request) {
	var body refundBody
	req, ok := s.keyed(w, r, opRefund, &body)
	if !ok {
		return
	}
	in, known := s.payments.find(body.PaymentIntent)
	if known && body.Amount != nil && *body.Amount != in.Amount {
		s.write(w, refuse(http.StatusBadRequest, "invalid_request", "only the whole amount can be refunded"))
		return
	}
	out, err := s.payments.refund(req, body)
	if err == nil && (out.did == kindRefund && in.PaymentMethod == methodRefundLostAnswer ||
		out.did == kindError && !s.sleep(r.Context().Done(), s.cfg.Hang)) {
		drop(w)
		return
	}
	s.finish(w, out, err)
}

func (s *server) showIntent(w http.ResponseWriter, r *http.Request) {
	in, ok := s.payments.find(r.PathValue("id"))
	s.finishLookup(w, in, ok)
}

// findIntent answers with the intent that was created under a key, or lists intents.
func (s *server) findIntent(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	key := q.Get("idempotency_key")
	if key == "" {
		s.listIntents(w, q)
		return
	}
	in, ok := s.payments.findByKey(key)
	s.finishLookup(w, in, ok)
}

// maxPage is the most intents in one answer.
const maxPage = 100

// page is a part of the list of intents. NextAfter asks for the next one; it is empty on the last.
type page struct {
	Data      []intent `json:"data"`
	NextAfter string   `json:"next_after,omitempty"`
}

func (s *server) listIntents(w http.ResponseWriter, q url.Values) {
	var since, until time.Time
	for name, into := range map[string]*time.Time{"created_since": &since, "created_until": &until} {
		at, err := time.Parse(time.RFC3339Nano, q.Get(name))
		if err != nil {
			s.write(w, refuse(http.StatusBadRequest, "invalid_request",
				"give idempotency_key, or created_since and created_until as RFC 3339, such as 2026-01-02T15:04:05Z"))
			return
		}
		*into = at
	}
	found := page{Data: s.payments.list(since, until, q.Get("after"), maxPage+1)}
	if len(found.Data) > maxPage {
		found.Data = found.Data[:maxPage]
		found.NextAfter = found.Data[maxPage-1].ID
	}
	s.finish(w, outcome{answer: answerWith(http.StatusOK, found)}, s.journal.commit())
}

func (s *server) finishLookup(w http.ResponseWriter, in intent, ok bool) {
	out := outcome{answer: notFound()}
	switch fault := s.faults.nextLookup(); {
	case fault == "503":
		out.answer = unavailable()
	case ok && fault != "404":
		out.answer = answerWith(http.StatusOK, in)
	}
	s.finish(w, out, s.journal.commit())
}

// keyed reads the Idempotency-Key and the body of a request that must have one. Without a body pointer the body is only
// read, so that the server notices when the caller hangs up.
func (s *server) keyed(w http.ResponseWriter, r *http.Request, op string, body any) (request, bool) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.write(w, refuse(http.StatusBadRequest, "invalid_request", "the body could not be read, or is over 64 KiB"))
		return request{}, false
	}
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) != 1 || keys[0] == "" || len(keys[0]) > 255 {
		s.write(w, refuse(http.StatusBadRequest, "idempotency_key_missing", "the header Idempotency-Key is needed, once, of 1 to 255 characters"))
		return request{}, false
	}
	canonical := []byte(nil)
	if body != nil {
		if err := json.Unmarshal(raw, body); err != nil {
			s.write(w, refuse(http.StatusBadRequest, "invalid_request", "the body is not the JSON object that is expected"))
			return request{}, false
		}
		// What was understood is compared, not the bytes: white space does not make another request.
		if canonical, err = json.Marshal(body); err != nil {
			s.fail(w, fmt.Errorf("encode a request: %w", err))
			return request{}, false
		}
	}
	sum := sha256.Sum256(bytes.Join([][]byte{[]byte(r.URL.Path), canonical}, []byte{0}))
	return request{op: op, key: keys[0], hash: hex.EncodeToString(sum[:])}, true
}

func (s *server) finish(w http.ResponseWriter, out outcome, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	if out.replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	s.write(w, out.answer)
}

func (s *server) fail(w http.ResponseWriter, err error) {
	s.log.Error("request failed", slog.Any("error", err))
	s.write(w, refuse(http.StatusInternalServerError, "internal_error", "The sandbox is broken; see its log."))
}

func (s *server) write(w http.ResponseWriter, a *answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // a caller that hung up is told nothing
	_, _ = w.Write([]byte{'\n'})
}

// drop cuts the connection in the middle of the answer's first line. Closing it before the first byte would be no lost
// answer to Go's client, which quietly sends a request with an Idempotency-Key again on another connection.
func drop(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // no connection of its own, as in HTTP/2: the server resets the stream
	}
	_, _ = conn.Write([]byte("HTTP/1.1 "))
	_ = conn.Close()
}

// faulty wraps a handler that changes payments in the fault that is set for it.
func (s *server) faulty(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch s.faults.nextPayment() {
		case "500":
			s.write(w, refuse(http.StatusInternalServerError, "internal_error", "Nothing was done."))
		case "503":
			w.Header().Set("Retry-After", "1")
			s.write(w, unavailable())
		case faultDrop:
			next(discard{header: http.Header{}}, r)
			drop(w)
		case faultSlow:
			if !s.sleep(nil, s.cfg.Slow) {
				drop(w)
				return
			}
			next(w, r)
		default:
			next(w, r)
		}
	}
}

func unavailable() *answer {
	return refuse(http.StatusServiceUnavailable, "unavailable", "Nothing was done.")
}

// discard is the answer that is lost.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
