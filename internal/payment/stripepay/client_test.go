package stripepay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

const (
	testKey  = "sk_test_123"
	intentID = "pi_3MtwBwLkdIwHu7ix28a3tqPa"
	chargeID = "0192f0a0-0000-7000-8000-000000000001:charge-payment:1"
	orderID  = "0192f0a0-0000-7000-8000-000000000001"
)

// recorded returns an answer in Stripe's words, as its API reference shows them.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// said is an answer: a status, and the name of what is recorded.
type said struct {
	status int
	name   string
}

// request is what Stripe was asked.
type request struct {
	method, path, key, version, authorization string
	form                                      url.Values
}

// api speaks Stripe's protocol over HTTP.
type api struct {
	*Client
	mu    sync.Mutex
	asked []request
}

func (a *api) requests() []request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// stripeThat starts an API that does what handle says.
func stripeThat(t testing.TB, handle http.HandlerFunc) *api {
	t.Helper()
	a := &api{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has gone away
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
		form, err := url.ParseQuery(string(raw) + "&" + r.URL.RawQuery)
		if err != nil {
			t.Error(err)
		}
		delete(form, "")
		a.mu.Lock()
		a.asked = append(a.asked, request{
			r.Method, r.URL.Path, r.Header.Get("Idempotency-Key"), r.Header.Get("Stripe-Version"), r.Header.Get("Authorization"), form,
		})
		a.mu.Unlock()
		handle(w, r)
	}))
	t.Cleanup(server.Close)
	var err error
	if a.Client, err = New(testKey, server.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// stripeSays starts an API that gives the answers by "METHOD path".
func stripeSays(t testing.TB, answers map[string]said) *api {
	t.Helper()
	return stripeThat(t, func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			t.Errorf("%s %s was not to be asked", r.Method, r.URL.Path)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.status)
		_, _ = w.Write(recorded(t, a.name))
	})
}

const (
	create  = "POST /v1/payment_intents"
	one     = "/v1/payment_intents/" + intentID
	confirm = "POST " + one + "/confirm"
	cancel  = "POST " + one + "/cancel"
	look    = "GET " + one
	refunds = "POST /v1/refunds"
)

func shownAs(status payment.Status, refund string) payment.Intent {
	in := payment.Intent{
		ID: intentID, Status: status, Amount: 2000, Currency: "EUR", Method: "pm_1MtwBwLkdIwHu7ixlT4KCVOk", Reference: orderID, Refund: refund,
	}
	if refund != "" {
		in.Refunded = in.Amount
	}
	return in
}

func TestAnIntentIsShownAsItStands(t *testing.T) {
	t.Parallel()
	without := func(in payment.Intent) payment.Intent { in.Method = ""; return in }
	inPart := shownAs(payment.Succeeded, "")
	inPart.Refunded = 500
	for name, want := range map[string]payment.Intent{
		"intent_requires_confirmation": shownAs(payment.Unconfirmed, ""),
		"intent_processing":            shownAs("processing", ""),
		"intent_requires_action":       shownAs("requires_action", ""),
		"intent_requires_capture":      shownAs("requires_capture", ""),
		"intent_succeeded":             shownAs(payment.Succeeded, ""),
		"intent_refunded":              shownAs(payment.Succeeded, "re_1Nispe2eZvKYlo2Cd31jOCgZ"),
		"intent_refunded_in_part":      inPart,
		"intent_canceled":              shownAs(payment.Canceled, ""),
		"intent_declined":              without(shownAs(payment.Declined, "")),
		"intent_without_a_method":      without(shownAs("requires_payment_method", "")),
	} {
		got, ok, err := stripeSays(t, map[string]said{look: {200, name}}).ByID(t.Context(), intentID)
		if diff := cmp.Diff(want, got); diff != "" || !ok || err != nil {
			t.Errorf("ByID of %s = %v, %v (-want +got):\n%s", name, ok, err, diff)
		}
	}
	if _, ok, err := stripeSays(t, map[string]said{look: {404, "error_no_such_intent"}}).ByID(t.Context(), intentID); ok || err != nil {
		t.Errorf("ByID of an intent that Stripe does not know = %v, %v; want false", ok, err)
	}
}

func TestAnErrorOfStripeMeansWhatItSays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		answer said
		want   payment.Kind
		text   string
	}{
		{said{402, "error_card_declined"}, payment.PaymentDeclined, "402 card_declined generic_decline"},
		{said{402, "error_authentication_required"}, payment.PaymentDeclined, "402 authentication_required"},
		{said{400, "error_key_reused"}, payment.KeyReused, "400 idempotency_error"},
		{said{409, "error_key_in_use"}, payment.Undecided, "409 idempotency_key_in_use"},
		{said{429, "error_lock_timeout"}, payment.Undecided, "429 lock_timeout"},
		{said{409, "error_lock_timeout"}, payment.Undecided, "409 lock_timeout"},
		{said{429, "error_rate_limit"}, payment.Undecided, "429 rate_limit"},
		{said{400, "error_unexpected_state"}, payment.Undecided, "400 payment_intent_unexpected_state"},
		{said{400, "error_no_such_method"}, payment.Invalid, "400 resource_missing"},
		{said{400, "error_amount_too_small"}, payment.Invalid, "400 amount_too_small"},
		{said{404, "error_no_such_intent"}, payment.NotFound, "404 resource_missing"},
		{said{401, "error_revoked_key"}, payment.Undecided, "401 api_key_expired"},
		{said{500, "error_api"}, payment.Undecided, "500 api_error"},
		{said{503, "error_card_declined"}, payment.Undecided, "503 card_declined"},
	} {
		_, err := stripeSays(t, map[string]said{confirm: tt.answer}).Confirm(t.Context(), "key", intentID)
		if got := payment.RefusedAs(err); got != tt.want || payment.NeverSent(err) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("confirm answered with %v = %q, %v; want %q and %q", tt.answer, got, err, tt.want, tt.text)
		}
		// They reach the journal, the log and operators' screens.
		for _, secret := range []string{"client_secret", "_secret_", "payer@example.com", "Rosen", testKey} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error repeats %q: %v", secret, err)
			}
		}
	}
}

func TestEachRequestIsStripes(t *testing.T) {
	t.Parallel()
	a := stripeSays(t, map[string]said{
		create: {200, "intent_requires_confirmation"}, confirm: {200, "intent_succeeded"}, cancel: {200, "intent_canceled"}, refunds: {200, "refund"},
	})
	want := payment.Intent{Amount: 2000, Currency: "EUR", Method: "pm_1MtwBwLkdIwHu7ixlT4KCVOk", Reference: orderID}
	if got, err := a.Create(t.Context(), chargeID, want); err != nil || got != shownAs(payment.Unconfirmed, "") {
		t.Errorf("Create = %+v, %v", got, err)
	}
	if got, err := a.Confirm(t.Context(), chargeID+":confirm", intentID); err != nil || got != shownAs(payment.Succeeded, "") {
		t.Errorf("Confirm = %+v, %v", got, err)
	}
	if cancelled, err := a.Cancel(t.Context(), intentID); !cancelled || err != nil {
		t.Errorf("Cancel = %v, %v; want true", cancelled, err)
	}
	if id, err := a.Refund(t.Context(), orderID+":charge-payment:undo:1", intentID); id != "re_1Nispe2eZvKYlo2Cd31jOCgZ" || err != nil {
		t.Errorf("Refund = %q, %v", id, err)
	}
	var got []request
	for _, r := range a.requests() {
		if r.authorization != "Bearer "+testKey || r.version == "" || r.key == "" {
			t.Errorf("%s %s came with authorization %q, version %q and key %q", r.method, r.path, r.authorization, r.version, r.key)
		}
		if r.path == one+"/cancel" {
			r.key = "" // of its own each time
		}
		r.authorization, r.version = "", ""
		got = append(got, r)
	}
	expand := []string{"latest_charge.refunds"}
	if diff := cmp.Diff([]request{
		{method: "POST", path: "/v1/payment_intents", key: chargeID, form: url.Values{
			"amount": {"2000"}, "currency": {"eur"}, "payment_method": {"pm_1MtwBwLkdIwHu7ixlT4KCVOk"}, "payment_method_types[0]": {"card"},
			"confirmation_method": {"manual"}, "capture_method": {"automatic"},
			"metadata[order_id]": {orderID}, "metadata[idempotency_key]": {chargeID},
		}},
		{method: "POST", path: one + "/confirm", key: chargeID + ":confirm", form: url.Values{"error_on_requires_action": {"true"}, "expand[0]": expand}},
		{method: "POST", path: one + "/cancel", form: url.Values{"expand[0]": expand}},
		{method: "POST", path: "/v1/refunds", key: orderID + ":charge-payment:undo:1", form: url.Values{"payment_intent": {intentID}}},
	}, got, cmp.AllowUnexported(request{})); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestACancelMeansWhatTheIntentSays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		cancel, see said
		cancelled   bool
		ok          bool
	}{
		{"cancelled", said{200, "intent_canceled"}, said{}, true, true},
		{"charged already", said{400, "error_unexpected_state"}, said{200, "intent_succeeded"}, false, true},
		{"charged and refunded", said{400, "error_unexpected_state"}, said{200, "intent_refunded"}, false, true},
		{"cancelled before", said{400, "error_unexpected_state"}, said{200, "intent_canceled"}, true, true},
		{"being charged", said{400, "error_unexpected_state"}, said{200, "intent_processing"}, false, false},
		{"the look-up is behind", said{400, "error_unexpected_state"}, said{200, "intent_requires_confirmation"}, false, false},
		{"the look-up fails", said{400, "error_unexpected_state"}, said{500, "error_api"}, false, false},
		{"another request works on it", said{429, "error_lock_timeout"}, said{}, false, false},
		{"an answer that is no cancel", said{200, "intent_succeeded"}, said{}, false, false},
	} {
		answers := map[string]said{cancel: tt.cancel}
		if tt.see.name != "" {
			answers[look] = tt.see
		}
		cancelled, err := stripeSays(t, answers).Cancel(t.Context(), intentID)
		if cancelled != tt.cancelled || (err == nil) != tt.ok {
			t.Errorf("%s: Cancel = %v, %v; want %v and an error: %v", tt.name, cancelled, err, tt.cancelled, !tt.ok)
		}
	}
}

func TestARefundThatWasMadeCounts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		refund, see said
		id          string
	}{
		{"made now", said{200, "refund"}, said{}, "re_1Nispe2eZvKYlo2Cd31jOCgZ"},
		{"made before, under another key", said{400, "error_already_refunded"}, said{200, "intent_refunded"}, "re_1Nispe2eZvKYlo2Cd31jOCgZ"},
		{"made before, and not shown", said{400, "error_already_refunded"}, said{200, "intent_succeeded"}, ""},
		{"failed at the bank", said{200, "refund_failed"}, said{}, ""},
		{"Stripe fails", said{500, "error_api"}, said{}, ""},
	} {
		answers := map[string]said{refunds: tt.refund}
		if tt.see.name != "" {
			answers[look] = tt.see
		}
		id, err := stripeSays(t, answers).Refund(t.Context(), "key", intentID)
		if id != tt.id || (err == nil) != (tt.id != "") {
			t.Errorf("%s: Refund = %q, %v; want %q", tt.name, id, err, tt.id)
		}
	}
}

func TestIntentsAreFoundByTheirKeyInTheMetadata(t *testing.T) {
	t.Parallel()
	found := func(names ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			var data [][]byte
			for _, name := range names {
				data = append(data, recorded(t, name))
			}
			_, _ = w.Write([]byte(`{"object":"search_result","url":"/v1/payment_intents/search","has_more":false,"data":[` + string(bytes.Join(data, []byte(","))) + `]}`))
		}
	}
	a := stripeThat(t, found("intent_succeeded"))
	got, ok, err := a.ByKey(t.Context(), `o'brien\1`)
	if got != shownAs(payment.Succeeded, "") || !ok || err != nil {
		t.Errorf("ByKey = %+v, %v, %v", got, ok, err)
	}
	if q := a.requests()[0].form.Get("query"); q != `metadata['idempotency_key']:'o\'brien\\1'` {
		t.Errorf("the query is %s", q)
	}
	if _, ok, err := stripeThat(t, found()).ByKey(t.Context(), "key"); ok || err != nil {
		t.Errorf("ByKey of what is not shown = %v, %v; want false", ok, err)
	}
}

func TestIntentsAreListedByTheSecond(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 1, 2, 3, 4, 5, 1, time.UTC)
	a := stripeThat(t, func(w http.ResponseWriter, r *http.Request) {
		data := strings.TrimSuffix(strings.Repeat(string(recorded(t, "intent_succeeded"))+",", pageSize), ",")
		if r.URL.Query().Get("starting_after") != "" {
			data = string(recorded(t, "intent_canceled"))
		}
		_, _ = w.Write([]byte(`{"object":"list","url":"/v1/payment_intents","has_more":` + map[bool]string{true: "true", false: "false"}[r.URL.Query().Get("starting_after") == ""] + `,"data":[` + data + `]}`))
	})
	first, next, err := a.List(t.Context(), since, since.Add(time.Hour), "")
	if len(first) != pageSize || next != intentID || err != nil {
		t.Fatalf("List = %d intents, %q, %v; want a page and where it goes on", len(first), next, err)
	}
	last, next, err := a.List(t.Context(), since, since.Add(time.Hour), next)
	if len(last) != 1 || next != "" || err != nil {
		t.Errorf("the last page = %d intents, %q, %v", len(last), next, err)
	}
	if asked := a.requests(); len(asked) != 2 || asked[0].form.Get("created[gte]") != "1767323046" || asked[0].form.Get("created[lt]") != "1767326646" ||
		asked[1].form.Get("starting_after") != intentID {
		t.Errorf("asked %+v, want two requests from second to second", asked)
	}
}

func TestAnAnswerThatIsNoneLeavesTheOutcomeOpen(t *testing.T) {
	t.Parallel()
	for name, handle := range map[string]http.HandlerFunc{
		"one that is too long": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"id":"pi_1","status":"succeeded","description":"` + strings.Repeat("x", maxAnswer) + `"}`))
		},
		"a page": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>payer@example.com")) },
		"an error that is a page": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>payer@example.com"))
		},
		"an error of another shape": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"email":"payer@example.com"}`))
		},
		"one that sends us elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/v1/elsewhere", http.StatusTemporaryRedirect)
		},
		"one that breaks off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"id":`))
		},
		"none at all": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := stripeThat(t, handle)
			_, err := a.Confirm(t.Context(), "key", intentID)
			if err == nil || payment.NeverSent(err) || payment.RefusedAs(err) != "" || strings.Contains(err.Error(), "payer@example.com") {
				t.Errorf("Confirm = %v, want an error that leaves the outcome open and repeats nothing", err)
			}
			if n := len(a.requests()); n != 1 {
				t.Errorf("%d requests, want one: whether to send again is the saga's decision", n)
			}
		})
	}
}

func TestWhatFailsIsNotSentAgain(t *testing.T) {
	t.Parallel()
	for _, answer := range []said{{500, "error_api"}, {503, "error_api"}, {409, "error_lock_timeout"}, {429, "error_lock_timeout"}, {429, "error_rate_limit"}} {
		a := stripeSays(t, map[string]said{create: answer})
		if _, err := a.Create(t.Context(), "key", payment.Intent{Amount: 1, Currency: "EUR", Method: "pm_1", Reference: orderID}); err == nil {
			t.Errorf("Create answered with %v = nil, want an error", answer)
		}
		if n := len(a.requests()); n != 1 {
			t.Errorf("%d requests after %v, want one", n, answer)
		}
	}
	// A connection that was used before and breaks: net/http would send a request with an Idempotency-Key again by itself.
	a := stripeThat(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(recorded(t, "intent_requires_confirmation"))
	})
	if _, _, err := a.ByID(t.Context(), intentID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Confirm(t.Context(), "key", intentID); err == nil || len(a.requests()) != 2 {
		t.Errorf("Confirm whose answer was lost = %v after %d requests, want an error after one", err, len(a.requests())-1)
	}
}

func TestTheCallersTimeIsStripes(t *testing.T) {
	t.Parallel()
	ctx, timeIsOver := context.WithCancel(t.Context())
	defer timeIsOver()
	a := stripeThat(t, func(_ http.ResponseWriter, r *http.Request) {
		timeIsOver()
		<-r.Context().Done() // silent until the client goes away
	})
	if _, err := a.Confirm(ctx, "key", intentID); !errors.Is(err, context.Canceled) || payment.NeverSent(err) {
		t.Errorf("Confirm at a silent Stripe = %v, want an end that leaves the outcome open", err)
	}
}

func TestNewRefusesWhatIsNoKeyAndKeepsItToItself(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ key, base string }{
		{"", ""}, {"pk_live_hunter2", ""}, {"hunter2", ""}, {"sk_hunter2\r\nX: y", ""}, {"sk_hunter2", "ftp://hunter2@x"}, {"sk_hunter2", "http://hunter2@"},
	} {
		if _, err := New(tt.key, tt.base); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q, %q) = %v, want an error without the secret", tt.key, tt.base, err)
		}
	}
	nobody := httptest.NewServer(nil)
	nobody.Close()
	c, err := New("rk_hunter2", nobody.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Confirm(t.Context(), "key", intentID); !payment.NeverSent(err) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Confirm where nobody listens = %v, want one that was never sent, without the key", err)
	}
}
