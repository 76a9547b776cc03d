package sandbox

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestAPaymentMethodChoosesWhatAConfirmDoes(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{Slow: 30 * time.Millisecond, Late: 30 * time.Millisecond, Hang: 30 * time.Millisecond})
	for _, tc := range []struct {
		name, method string
		confirms     []int // the answer to each confirm under one key; 0 is a dropped connection
		status       string
		journal      string
	}{
		{"a good card is charged once, however often it is confirmed", "pm_ok", []int{200, 200}, "succeeded", "charge"},
		{"a bad card is declined", "pm_declined", []int{402, 402}, "declined", ""},
		{"an unknown method is declined", "pm_nonsense", []int{402}, "declined", ""},
		{"a slow provider charges in the end", "pm_slow", []int{200}, "succeeded", "charge"},
		{"a late provider charges in the end", "pm_late", []int{200}, "succeeded", "charge"},
		{"a provider that times out has not charged", "pm_timeout", []int{504, 504}, "requires_confirmation", ""},
		{"a lost answer is told to the repeat", "pm_lost_answer", []int{0, 200, 200}, "succeeded", "charge"},
		{"an error comes once and charges nothing", "pm_error_once", []int{500, 200, 200}, "succeeded", "charge"},
		{"a provider that times out may have charged", "pm_timeout_charged", []int{504, 200, 200}, "succeeded", "charge"},
		{"so may one that answers with an error", "pm_error_charged", []int{500, 200, 200}, "succeeded", "charge"},
		{"without webhooks there is none to wait for", "pm_webhook_first", []int{200, 200}, "succeeded", "charge"},
		{"nor to take the place of an answer", "pm_webhook_only", []int{0, 200}, "succeeded", "charge"},
		{"nor to repeat", "pm_webhook_repeated", []int{200}, "succeeded", "charge"},
		{"trouble with the refund is no trouble with the charge", "pm_refund_lost_answer", []int{200}, "succeeded", "charge"},
		{"whatever trouble", "pm_refund_timeout_once", []int{200}, "succeeded", "charge"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			id := b.create(t, "create-"+tc.method, tc.method, "order-"+tc.method)
			for i, want := range tc.confirms {
				r, err := b.try(t.Context(), http.MethodPost, "/v1/payment_intents/"+id+"/confirm", "confirm-"+tc.method, "")
				if (want == 0) != (err != nil) || r.status != want {
					t.Errorf("confirm %d: got %d, %v, want %d", i+1, r.status, err, want)
				}
			}
			if got := b.statusOf(t, id); got != tc.status {
				t.Errorf("intent afterwards: got %s, want %s", got, tc.status)
			}
			if got := b.kinds(t, "order-"+tc.method); got != tc.journal {
				t.Errorf("journal: got %q, want %q", got, tc.journal)
			}
		})
	}
}

func TestAPaymentMethodChoosesWhatARefundDoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, stop := start(t, Config{DataDir: dir, Hang: 30 * time.Millisecond})
	for _, tc := range []struct {
		name, method string
		refunds      []int // the answer to each refund under one key; 0 is a dropped connection
		journals     []string
	}{
		{"a refund is made once", "pm_ok", []int{201, 201}, []string{"charge refund", "charge refund"}},
		{"a refund whose answer is lost is made", "pm_refund_lost_answer", []int{0, 201}, []string{"charge refund", "charge refund"}},
		{"a refund that times out is not made before the next", "pm_refund_timeout_once", []int{504, 201, 201}, []string{"charge", "charge refund", "charge refund"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := b.create(t, tc.method, tc.method, tc.method)
			b.confirm(t, id, http.StatusOK)
			for i, want := range tc.refunds {
				r, err := b.try(t.Context(), http.MethodPost, "/v1/refunds", tc.method, `{"payment_intent":"`+id+`"}`)
				if (want == 0) != (err != nil) || r.status != want {
					t.Errorf("refund %d: got %d, %v, want %d", i+1, r.status, err, want)
				}
				if got := b.kinds(t, tc.method); got != tc.journals[i] {
					t.Errorf("journal after refund %d: got %q, want %q", i+1, got, tc.journals[i])
				}
			}
		})
	}
	id := b.create(t, "last", "pm_refund_timeout_once", "last")
	b.confirm(t, id, http.StatusOK)
	if r := b.post(t, "/v1/refunds", "last", `{"payment_intent":"`+id+`"}`); r.status != http.StatusGatewayTimeout {
		t.Errorf("first refund: got %d, want 504", r.status)
	}
	stop()
	b, _ = start(t, Config{DataDir: dir})
	if r := b.post(t, "/v1/refunds", "last", `{"payment_intent":"`+id+`"}`); r.status != http.StatusCreated {
		t.Errorf("second refund, after a restart: got %d, want 201", r.status)
	}
}

// F22: the answer never comes, so the caller asks, and cancels what was not charged.
func TestATimedOutConfirmIsNeverChargedOnceItsIntentIsCancelled(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{Hang: time.Minute})
	id := b.create(t, "k", "pm_timeout", "order")

	ctx, giveUp := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer giveUp()
	if _, err := b.try(ctx, http.MethodPost, "/v1/payment_intents/"+id+"/confirm", "k", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("confirm: got %v, want no answer before the caller gives up", err)
	}
	if got := b.get(t, "/v1/payment_intents?idempotency_key=k").field(t, "status"); got != "requires_confirmation" {
		t.Errorf("look-up by key: got %s, want requires_confirmation", got)
	}
	if r := b.post(t, "/v1/payment_intents/"+id+"/cancel", "", ""); r.status != 200 || r.field(t, "status") != "canceled" {
		t.Errorf("cancel: got %d %s, want 200 canceled", r.status, r.body)
	}
	if r := b.post(t, "/v1/payment_intents/"+id+"/confirm", "k", ""); r.status != 402 || r.field(t, "code") != "intent_canceled" {
		t.Errorf("confirm after cancel: got %d %s, want 402 intent_canceled", r.status, r.body)
	}
	if got := b.kinds(t, "order"); got != "cancel" {
		t.Errorf("journal: got %q, want a cancel and no charge", got)
	}
}

// F22: a charge that lands late finds the intent cancelled, or cannot be cancelled any more.
func TestACancelAndALateChargeExcludeEachOther(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{Late: 40 * time.Millisecond})
	for i := range 8 {
		t.Run(strconv.Itoa(i*10)+" ms between confirm and cancel", func(t *testing.T) {
			t.Parallel()
			ref := "order-" + strconv.Itoa(i)
			id := b.create(t, ref, "pm_late", ref)
			confirmed := make(chan reply, 1)
			go func() {
				r, _ := b.try(context.Background(), http.MethodPost, "/v1/payment_intents/"+id+"/confirm", ref, "")
				confirmed <- r
			}()
			select {
			case <-time.After(time.Duration(i*10) * time.Millisecond):
			case <-t.Context().Done():
			}
			cancel, confirm := b.post(t, "/v1/payment_intents/"+id+"/cancel", "", ""), <-confirmed
			got := strconv.Itoa(confirm.status) + " " + strconv.Itoa(cancel.status) + " " + b.statusOf(t, id) + " " + b.kinds(t, ref)
			if got != "402 200 canceled cancel" && got != "200 409 succeeded charge" {
				t.Errorf("confirm, cancel, status, journal: got %s, want all to agree", got)
			}
		})
	}
}

func TestAKeyAnswersForOneRequestOnly(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	first := b.post(t, "/v1/payment_intents", "k", createJSON("pm_ok", "order"))
	other := b.create(t, "k2", "pm_ok", "order-2")
	id := first.field(t, "id")
	b.post(t, "/v1/payment_intents/"+id+"/confirm", "k", "") // the same key in another operation
	b.post(t, "/v1/refunds", "k", `{"payment_intent":"`+id+`"}`)
	b.post(t, "/v1/payment_intents/"+other+"/confirm", "c", "")

	for _, tc := range []struct {
		name, path, key, body string
		status                int
		code                  string
		replayed              bool
	}{
		{"the same create is told the stored answer", "/v1/payment_intents", "k", createJSON("pm_ok", "order"), 201, "", true},
		{"white space does not make another create", "/v1/payment_intents", "k", " " + createJSON("pm_ok", "order"), 201, "", true},
		{"another create under the key is refused", "/v1/payment_intents", "k", createJSON("pm_ok", "other"), 409, "idempotency_key_reused", false},
		{"the same confirm is told the stored answer", "/v1/payment_intents/" + id + "/confirm", "k", "", 200, "", true},
		{"another confirm under the key is refused", "/v1/payment_intents/" + other + "/confirm", "k", "", 409, "idempotency_key_reused", false},
		{"the same refund is told the stored answer", "/v1/refunds", "k", `{"payment_intent":"` + id + `"}`, 201, "", true},
		{"another refund under the key is refused", "/v1/refunds", "k", `{"payment_intent":"` + other + `"}`, 409, "idempotency_key_reused", false},
		{"a second refund under another key is refused", "/v1/refunds", "k3", `{"payment_intent":"` + id + `"}`, 409, "already_refunded", false},
		{"a confirm of a charged intent under another key charges nothing", "/v1/payment_intents/" + other + "/confirm", "c2", "", 200, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := b.post(t, tc.path, tc.key, tc.body)
			if r.status != tc.status || r.field(t, "code") != tc.code || r.replayed != tc.replayed {
				t.Errorf("POST %s: got %d %q replayed %t, want %d %q %t", tc.path, r.status, r.field(t, "code"), r.replayed, tc.status, tc.code, tc.replayed)
			}
		})
	}
	if got := b.kinds(t, "order") + ", " + b.kinds(t, "order-2"); got != "charge refund, charge" {
		t.Errorf("journal: got %q, want each thing once", got)
	}
}

func TestParallelRepeatsDoOneThing(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	var wg sync.WaitGroup
	ids := make([]string, 40)
	for i := range ids {
		wg.Go(func() {
			r, err := b.try(t.Context(), http.MethodPost, "/v1/payment_intents", "k", createJSON("pm_ok", "order"))
			if err != nil || r.status != 201 {
				t.Errorf("create: got %d, %v, want 201", r.status, err)
				return
			}
			ids[i] = r.field(t, "id")
			for _, path := range []string{"/v1/payment_intents/" + ids[i] + "/confirm", "/v1/refunds"} {
				if r, err := b.try(t.Context(), http.MethodPost, path, "k", `{"payment_intent":"`+ids[i]+`"}`); err != nil || r.status >= 300 {
					t.Errorf("POST %s: got %d, %v, want success", path, r.status, err)
				}
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("create under one key: got intents %s and %s, want one", ids[0], id)
		}
	}
	if got := b.kinds(t, "order"); got != "charge refund" {
		t.Errorf("journal: got %q, want one charge and one refund", got)
	}
}

func TestBadPaymentRequestsAreRefused(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	open := b.create(t, "open", "pm_ok", "order")
	for _, tc := range []struct {
		name, method, path, key, body string
		status                        int
		code                          string
	}{
		{"no key", "POST", "/v1/payment_intents", "", createJSON("pm_ok", "o"), 400, "idempotency_key_missing"},
		{"no JSON", "POST", "/v1/payment_intents", "a", "amount=1", 400, "invalid_request"},
		{"no amount", "POST", "/v1/payment_intents", "b", `{"currency":"EUR","payment_method":"pm_ok","reference":"o"}`, 400, "invalid_request"},
		{"a fractional amount", "POST", "/v1/payment_intents", "c", `{"amount":1.5,"currency":"EUR","payment_method":"pm_ok","reference":"o"}`, 400, "invalid_request"},
		{"no currency", "POST", "/v1/payment_intents", "d", `{"amount":1,"currency":"euro","payment_method":"pm_ok","reference":"o"}`, 400, "invalid_request"},
		{"no method", "POST", "/v1/payment_intents", "e", `{"amount":1,"currency":"EUR","reference":"o"}`, 400, "invalid_request"},
		{"no reference", "POST", "/v1/payment_intents", "f", `{"amount":1,"currency":"EUR","payment_method":"pm_ok"}`, 400, "invalid_request"},
		{"confirm of nothing", "POST", "/v1/payment_intents/pi_0/confirm", "g", "", 404, "not_found"},
		{"cancel of nothing", "POST", "/v1/payment_intents/pi_0/cancel", "", "", 404, "not_found"},
		{"refund of nothing", "POST", "/v1/refunds", "h", `{"payment_intent":"pi_0"}`, 404, "not_found"},
		{"refund of what was not charged", "POST", "/v1/refunds", "i", `{"payment_intent":"` + open + `"}`, 409, "not_charged"},
		{"refund of a part", "POST", "/v1/refunds", "j", `{"payment_intent":"` + open + `","amount":1}`, 400, "invalid_request"},
		{"look-up of nothing", "GET", "/v1/payment_intents/pi_0", "", "", 404, "not_found"},
		{"look-up of an unknown key", "GET", "/v1/payment_intents?idempotency_key=never", "", "", 404, "not_found"},
		{"look-up without a key", "GET", "/v1/payment_intents", "", "", 400, "invalid_request"},
		{"a list of no time", "GET", "/v1/payment_intents?created_since=today&created_until=tomorrow", "", "", 400, "invalid_request"},
		{"a misspelled fault", "POST", "/v1/faults", "", `{"smpt":"451"}`, 400, "invalid_request"},
		{"an unknown fault", "POST", "/v1/faults", "", `{"smtp":"on fire"}`, 400, "invalid_request"},
		{"an unknown fault of webhooks", "POST", "/v1/faults", "", `{"webhooks":"lost"}`, 400, "invalid_request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := b.try(t.Context(), tc.method, tc.path, tc.key, tc.body)
			if err != nil || r.status != tc.status || r.field(t, "code") != tc.code {
				t.Errorf("%s %s: got %d %s, %v, want %d %s", tc.method, tc.path, r.status, r.body, err, tc.status, tc.code)
			}
		})
	}
	if got := b.entries(t); len(got) != 0 {
		t.Errorf("journal: got %v, want nothing", got)
	}
}

// F22: a look-up that lags behind says no about what is there.
func TestALookupFaultIsOverAfterItsCount(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	id := b.create(t, "k", "pm_ok", "order")
	for _, tc := range []struct {
		fault string
		want  int
	}{{"404", 404}, {"503", 503}} {
		b.post(t, "/v1/faults", "", `{"lookups":"`+tc.fault+`","lookups_count":2}`)
		got := []int{
			b.get(t, "/v1/payment_intents?idempotency_key=k").status, b.get(t, "/v1/payment_intents/"+id).status,
			b.get(t, "/v1/payment_intents/"+id).status,
		}
		if got[0] != tc.want || got[1] != tc.want || got[2] != 200 {
			t.Errorf("look-ups under fault %s: got %v, want %d twice, then 200", tc.fault, got, tc.want)
		}
	}
}

func TestAPaymentFaultIsOverAfterItsCount(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{})
	b.post(t, "/v1/faults", "", `{"payments":"503","payments_count":1}`)
	if r := b.post(t, "/v1/payment_intents", "k", createJSON("pm_ok", "order")); r.status != 503 {
		t.Errorf("create under fault 503: got %d, want 503", r.status)
	}
	id := b.create(t, "k", "pm_ok", "order")
	b.post(t, "/v1/faults", "", `{"payments":"drop","payments_count":1}`)
	if r, err := b.try(t.Context(), http.MethodPost, "/v1/payment_intents/"+id+"/confirm", "k", ""); err == nil {
		t.Errorf("confirm under fault drop: got %d, want no answer", r.status)
	}
	if r := b.post(t, "/v1/payment_intents/"+id+"/confirm", "k", ""); r.status != 200 || !r.replayed {
		t.Errorf("confirm again: got %d replayed %t, want the stored 200", r.status, r.replayed)
	}
	if got := b.kinds(t, "order"); got != "charge" {
		t.Errorf("journal: got %q, want one charge", got)
	}
}
